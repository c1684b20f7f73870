//! Folds identical functions of the agent's binary into one: generic code of async clients is full of them. The linker
//! of the pinned toolchain can do it where it is LLD, which is the default on this target.

#![expect(clippy::disallowed_methods, reason = "that is how cargo tells a build script its target")]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu") {
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    }
}
