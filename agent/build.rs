//! Merges identical functions of the agent's binary: generic code of async clients has many. LLD, the pinned toolchain's
//! default linker for this target, can do it.

#![expect(clippy::disallowed_methods, reason = "that is how cargo tells a build script its target")]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu") {
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    }
}
