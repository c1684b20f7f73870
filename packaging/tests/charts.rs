//! The charts, as helm and the schemas of Kubernetes see them.

mod support;

use std::{path::Path, process::Command};
use support::{packaging, tool, try_run as run};

const CHARTS: [&str; 2] = ["vedette", "vedette-workspace"];
/// Versions of Kubernetes whose schemas the manifests must follow.
const VERSIONS: [&str; 3] = ["1.25", "1.32", "1.36"];

fn required(chart: &str) -> &'static [&'static str] {
    match chart {
        "vedette" => &["--set", "workspace.url=https://w.example:8443", "--set", "enrollment.existingSecret=s"],
        _ => &["--set", "geo=europe"],
    }
}

fn template(helm: &Path, chart: &str, version: &str, more: &[&str]) -> Result<String, String> {
    let mut helm = Command::new(helm);
    helm.args(["template", "release"]).arg(packaging().join("kubernetes").join(chart));
    run(helm.args(["--namespace", "security", "--kube-version", version]).args(more))
}

#[test]
fn helm_finds_no_fault_and_the_versions_are_the_release_s() {
    let Some(helm) = tool("helm") else { return };
    for chart in CHARTS {
        let dir = packaging().join("kubernetes").join(chart);
        let done = run(Command::new(&helm).args(["lint", "--strict"]).arg(&dir).args(required(chart)));
        assert!(done.as_ref().is_ok_and(|text| !text.contains("WARNING")), "{done:?}");
        let about = std::fs::read_to_string(dir.join("Chart.yaml")).expect("reads");
        for key in ["version", "appVersion"] {
            assert!(about.contains(&format!("\n{key}: {}\n", env!("CARGO_PKG_VERSION"))), "{chart}: {key}");
        }
    }
}

#[test]
fn the_manifests_follow_kubernetes_schemas() {
    let (Some(helm), Some(validate)) = (tool("helm"), tool("kubernetes-validate")) else { return };
    let dir = tempfile::tempdir().expect("temp dir");
    let variants: [(&str, &[&str]); 5] = [
        ("vedette", &[]),
        (
            "vedette",
            &[
                "--set",
                "enrollment.existingSecret=,enrollment.token=vdt_x,enrollment.ca=pem,config=[log]\nlevel=\"debug\"",
            ],
        ),
        (
            "vedette",
            &[
                "--set",
                "workspace.roots=platform,hostNetwork=false,priorityClass.create=false,seLinuxOptions.type=spc_t,\
                        workspace.geo=europe,image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
            ],
        ),
        ("vedette-workspace", &[]),
        (
            "vedette-workspace",
            &["--set", "persistence.storageClass=fast,names={w.example,10.0.0.1},networkPolicy.enabled=false"],
        ),
    ];
    for (number, (chart, more)) in variants.into_iter().enumerate() {
        for version in VERSIONS {
            let more: Vec<&str> = required(chart).iter().chain(more).copied().collect();
            let text = template(&helm, chart, &format!("{version}.0"), &more).expect("it renders");
            let file = dir.path().join(format!("{number}.yaml"));
            std::fs::File::create(&file)
                .and_then(|mut to| std::io::Write::write_all(&mut to, text.as_bytes()))
                .expect("writes");
            let done = run(Command::new(&validate).args(["--strict", "-k", version]).arg(&file));
            assert!(done.is_ok(), "{chart} {more:?} {version}: {done:?}");
        }
    }
}

#[test]
fn values_with_a_typo_are_refused() {
    let Some(helm) = tool("helm") else { return };
    for (chart, wrong, named) in [
        ("vedette", "workspace.url=http://w.example", "workspace.url"),
        ("vedette", "workspace.geo=mars", "workspace.geo"),
        ("vedette", "tolerations=x", "tolerations"),
        ("vedette", "ressources.limits.cpu=1", "ressources"),
        ("vedette-workspace", "geo=", "geo"),
        ("vedette-workspace", "persistence.size=big", "persistence.size"),
    ] {
        let more: Vec<&str> = required(chart).iter().copied().chain(["--set", wrong]).collect();
        let refused = template(&helm, chart, "1.32.0", &more).expect_err("it is wrong");
        assert!(refused.contains(named), "{wrong}: {refused}");
    }
    let refused = template(&helm, "vedette", "1.32.0", &["--set", "workspace.url=https://w.example"]);
    assert!(refused.is_err_and(|text| text.contains("enrollment")), "a secret is needed");
}

/// Pods are replaced when the configuration changes, and only then.
#[test]
fn the_checksum_follows_the_configuration() {
    let Some(helm) = tool("helm") else { return };
    let checksum = |more: &str| {
        let more: Vec<&str> = required("vedette").iter().copied().chain(["--set", more]).collect();
        let text = template(&helm, "vedette", "1.32.0", &more).expect("renders");
        text.lines().find(|line| line.contains("checksum/config")).map(str::to_owned).expect("it is there")
    };
    assert_eq!(checksum("containerLogs=true"), checksum("resources.limits.cpu=1"));
    assert_ne!(checksum("containerLogs=true"), checksum("containerLogs=false"));
    assert_ne!(checksum("containerLogs=true"), checksum("workspace.geo=europe"));
}

#[test]
fn the_plain_manifests_are_rendered_from_the_charts() {
    if tool("helm").is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("temp dir");
    run(Command::new(packaging().join("kubernetes/render")).arg(dir.path())).expect("renders");
    for chart in CHARTS {
        let name = format!("{chart}.yaml");
        let read = |dir: &Path| std::fs::read_to_string(dir.join(&name)).expect("reads");
        let is_same = read(dir.path()) == read(&packaging().join("kubernetes"));
        assert!(is_same, "packaging/kubernetes/{name} is not what packaging/kubernetes/render makes");
    }
}
