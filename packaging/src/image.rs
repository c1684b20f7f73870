//! The container image: one layer, as an archive of the OCI image layout (github.com/opencontainers/image-spec, v1.1).
//!
//! The layer is written entry by entry, since owners and capabilities of files are not those of this machine.

use crate::{
    Arch, Release,
    manifest::{Capability, Image, Package},
    run,
    tree::{Tree, packed},
};
use anyhow::{Context, Result, bail};
use flate2::Compression;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use tar::{Builder, EntryType, Header};

/// Maximum size of the unpacked agent's image in bytes.
const AGENT_BYTES_MAX: usize = 20 << 20;
/// Record of an extended header with the capabilities of a file, as tar(1) and container runtimes read it.
const CAPABILITIES: &str = "SCHILY.xattr.security.capability";
/// Revision 2 of the attribute, without its flag "effective" (linux/capability.h): the program makes them effective.
const CAPABILITIES_MAGIC: u32 = 0x0200_0000;

/// Builds the image.
///
/// # Errors
/// The image is too large, or cannot be written.
pub(crate) fn build(package: &Package, release: &Release, tree: &Tree) -> Result<PathBuf> {
    let time: u64 = release.epoch.parse().context("cannot parse the time of the last commit")?;
    let layer = layer(package, tree, time)?;
    if release.is_shipped && package.name == "vedette" && layer.len() > AGENT_BYTES_MAX {
        bail!("the image of {} has {} bytes, more than {AGENT_BYTES_MAX}", package.name, layer.len());
    }
    let packed = packed(&layer, if release.is_shipped { Compression::best() } else { Compression::fast() })?;
    let platform = platform(release.arch);
    let config = serde_json::to_vec(&config(package, release, &platform, &digest(&layer))?)?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &packed)],
    }))?;
    let mut of_manifest = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    of_manifest["platform"] = platform;
    of_manifest["annotations"] = json!({"org.opencontainers.image.ref.name": release.version});
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [of_manifest],
    }))?;
    let path = release.out.join(format!("{}-{}-{}.oci.tar", package.name, release.version, release.arch.name()));
    let mut archive = Builder::new(fs::File::create(&path)?);
    let layout = json!({"imageLayoutVersion": "1.0.0"}).to_string().into_bytes();
    let mut files = vec![("oci-layout".to_owned(), layout), ("index.json".to_owned(), index)];
    files.extend([config, manifest, packed].map(|blob| (format!("blobs/sha256/{}", hash(&blob)), blob)));
    for (name, bytes) in &files {
        let mut header = header(EntryType::Regular, 0o644, 0, time);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes.as_slice())?;
    }
    archive.into_inner()?.sync_all()?;
    Ok(path)
}

/// The files, each after its directories.
fn layer(package: &Package, tree: &Tree, time: u64) -> Result<Vec<u8>> {
    let Image { user, directories, capabilities, .. } = &package.image;
    let mut paths: BTreeSet<&Path> = tree.files.iter().map(|file| Path::new(&file.path)).collect();
    paths.extend(directories.iter().map(Path::new));
    let below_root = |path: &&&Path| path.components().count() > 1;
    let parents: BTreeSet<&Path> = paths.iter().flat_map(|path| path.ancestors().skip(1)).collect();
    paths.extend(parents.iter().filter(below_root));
    let mut layer = Builder::new(Vec::new());
    for path in paths {
        let name = path.strip_prefix("/").context("a path in the manifest is not absolute")?;
        if let Some(file) = tree.files.iter().find(|file| Path::new(&file.path) == path) {
            let bytes = fs::read(tree.root.join(name))?;
            if !capabilities.is_empty() && path.file_name().is_some_and(|name| *name == *package.program) {
                let value = attribute(capabilities);
                layer.append_pax_extensions([(CAPABILITIES, value.as_slice())])?;
            }
            let mut header = header(EntryType::Regular, file.mode, 0, time);
            header.set_size(bytes.len() as u64);
            layer.append_data(&mut header, name, bytes.as_slice())?;
        } else {
            let is_own = directories.iter().any(|own| Path::new(own) == path);
            let (mode, owner) = if is_own { (0o700, *user) } else { (0o755, 0) };
            let mut header = header(EntryType::Directory, mode, owner, time);
            layer.append_data(&mut header, name.join(""), std::io::empty())?;
        }
    }
    Ok(layer.into_inner()?)
}

fn header(entry: EntryType, mode: u32, owner: u32, time: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(entry);
    header.set_mode(mode);
    header.set_uid(owner.into());
    header.set_gid(owner.into());
    header.set_mtime(time);
    header.set_size(0);
    header
}

/// Value of `security.capability`: magic, then permitted and inheritable sets, in two halves (linux/capability.h).
fn attribute(capabilities: &[Capability]) -> Vec<u8> {
    let permitted = capabilities.iter().fold(0_u32, |set, capability| set | 1 << *capability as u32);
    [CAPABILITIES_MAGIC, permitted, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn config(package: &Package, release: &Release, platform: &Value, layer: &str) -> Result<Value> {
    let created = run::output("date", ["-u", "-d", &format!("@{}", release.epoch), "+%Y-%m-%dT%H:%M:%SZ"])?;
    let (created, user) = (created.trim(), package.image.user);
    Ok(json!({
        "created": created,
        "architecture": platform["architecture"],
        "os": platform["os"],
        "config": {
            "User": format!("{user}:{user}"),
            "Env": package.image.environment,
            "Entrypoint": [format!("/usr/bin/{}", package.program)],
            "Cmd": package.image.arguments,
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": package.name,
                "org.opencontainers.image.description": package.summary,
                "org.opencontainers.image.version": release.version,
                "org.opencontainers.image.source": "https://github.com/vedette-project/vedette",
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer]},
        "history": [{"created": created, "created_by": "vedette-packaging"}],
    }))
}

fn platform(arch: Arch) -> Value {
    json!({"architecture": arch.debian(), "os": "linux"})
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hash(bytes))
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
