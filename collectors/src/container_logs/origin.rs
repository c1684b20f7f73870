//! The container of a log file: from the file's name, and from what the runtimes keep on the host.

use crate::CollectorContext;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::{Duration, Instant},
};
use vedette_wire::body::Container;

/// Directory of kubelet's links: `POD_NAMESPACE_CONTAINER-ID.log` to the log of a pod.
const LINKS: &str = "/var/log/containers";
/// Directories of the runtimes' containers, what is below that of one, and the annotation there with the image reference. CRI-O copies
/// the annotations of pods, so that another runtime's name would be the pod's to choose.
const RUNTIMES: [(&str, &str, &str); 3] = [
    ("/run/containerd/io.containerd.runtime.v2.task/k8s.io", "config.json", "io.kubernetes.cri.image-name"),
    ("/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io", "config.json", "io.kubernetes.cri.image-name"),
    ("/run/containers/storage/overlay-containers", "userdata/config.json", "io.kubernetes.cri-o.ImageName"),
];
/// Maximum size of a container's configuration.
const CONFIGURATION_BYTES_MAX: u64 = 4 << 20;
/// Maximum number of links to look at.
const LINKS_MAX: usize = 10_000;
/// Interval of attempts to learn what is not known of a container, and their number.
const LEARN_EVERY: Duration = Duration::from_secs(10);
const LEARN_MAX: u32 = 6;
/// Maximum number of containers to remember: more than a tailer has files open.
const KNOWN_MAX: usize = 10_000;
/// Maximum length of an image reference in bytes: name 255, tag 128 and digest, with their separators.
const IMAGE_BYTES_MAX: usize = 1024;

/// Configuration of a container in the format of OCI's runtime specification.
#[derive(Deserialize)]
struct RuntimeConfiguration {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Docker's `config.v2.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerConfiguration {
    name: Option<String>,
    config: Option<DockerImage>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    image: Option<String>,
}

/// Containers by the path of their log.
pub(super) struct Origins {
    context: CollectorContext,
    known: HashMap<String, Known>,
}

struct Known {
    container: Container,
    learned: Instant,
    attempts: u32,
}

impl Origins {
    pub(super) fn new(context: &CollectorContext) -> Self {
        Self { context: context.clone(), known: HashMap::new() }
    }

    /// The container of a log by its path on the host.
    pub(super) fn of(&mut self, path: &str) -> &mut Container {
        let context = &self.context;
        if !self.known.contains_key(path) {
            if self.known.len() >= KNOWN_MAX {
                self.known.clear();
            }
            let container = learn(context, Path::new(path));
            self.known.insert(path.to_owned(), Known { container, learned: Instant::now(), attempts: 1 });
        }
        let known = self.known.get_mut(path).expect("inserted above");
        // kubelet makes its link, and the runtime its files, at about the time of the first line.
        let is_known = known.container.image.is_some();
        if !is_known && known.attempts < LEARN_MAX && known.learned.elapsed() > LEARN_EVERY {
            known.container = learn(context, Path::new(path));
            (known.learned, known.attempts) = (Instant::now(), known.attempts + 1);
        }
        &mut known.container
    }
}

/// What the host tells of the container of a log.
fn learn(context: &CollectorContext, path: &Path) -> Container {
    let mut container = of_pod(path).unwrap_or_default();
    // With cri-dockerd, the pod's log is a link to Docker's.
    let resolved = context.host().and_then(|root| root.find(path)).map(|found| found.path().to_owned());
    let docker = [Some(path.to_owned()), resolved.ok()].into_iter().flatten().find_map(|path| of_docker(&path));
    if let Some(id) = docker {
        let config: Option<DockerConfiguration> =
            configuration(context, &format!("/var/lib/docker/containers/{id}/config.v2.json"));
        let (name, image) = config.map_or((None, None), |config| (config.name, config.config));
        container.image = image.and_then(|image| image.image);
        // Docker's names begin with a slash; that of a pod's container is made up by kubelet.
        container.name = container.name.or_else(|| name.map(|name| name.trim_start_matches('/').to_owned()));
        container.id = Some(id);
    } else if let Some(id) = container.pod.is_some().then(|| linked(context, path, &container)).flatten() {
        container.image = RUNTIMES.iter().find_map(|(dir, file, image)| {
            let mut config: RuntimeConfiguration = configuration(context, &format!("{dir}/{id}/{file}"))?;
            config.annotations.remove(*image)
        });
        container.id = Some(id);
    }
    container.image = container.image.filter(|image| image.len() <= IMAGE_BYTES_MAX);
    container
}

fn configuration<T: serde::de::DeserializeOwned>(context: &CollectorContext, path: &str) -> Option<T> {
    serde_json::from_slice(&context.bytes(path, CONFIGURATION_BYTES_MAX)?).ok()
}

/// `…/NAMESPACE_POD_UID/CONTAINER/RESTARTS.log`. No name of Kubernetes has an underscore.
fn of_pod(path: &Path) -> Option<Container> {
    let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    let restarts = path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok();
    let dir = path.parent()?;
    let pod = name(dir.parent()?)?;
    let mut words = pod.splitn(3, '_');
    let (namespace, pod, uid) = (words.next()?, words.next()?, words.next()?);
    Some(Container {
        name: name(dir),
        namespace: Some(namespace.to_owned()),
        pod: Some(pod.to_owned()),
        pod_uid: Some(uid.to_owned()),
        restarts,
        ..Container::default()
    })
}

/// `…/ID/ID-json.log`
fn of_docker(path: &Path) -> Option<String> {
    let id = path.file_name()?.to_str()?.strip_suffix("-json.log")?;
    (is_id(id) && path.parent()?.file_name()? == id).then(|| id.to_owned())
}

/// Whether a text may be a container's id, and so a component of a path.
fn is_id(text: &str) -> bool {
    (12..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Id of the container whose link leads to a log.
fn linked(context: &CollectorContext, path: &Path, container: &Container) -> Option<String> {
    let root = context.host().ok()?;
    let (pod, namespace, name) = (container.pod.as_ref()?, container.namespace.as_ref()?, container.name.as_ref()?);
    let prefix = format!("{pod}_{namespace}_{name}-");
    let (dir, entries) = root.entries(Path::new(LINKS)).ok()?;
    entries.flatten().take(LINKS_MAX).find_map(|entry| {
        let link = entry.file_name().to_str().ok()?;
        let id = link.strip_prefix(&prefix)?.strip_suffix(".log").filter(|id| is_id(id))?;
        // A restarted container has a link of its own.
        let target = rustix::fs::readlinkat(&dir, link, Vec::new()).ok()?;
        (Path::new(target.to_str().ok()?) == path).then(|| id.to_owned())
    })
}
