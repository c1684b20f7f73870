//! Layers of the configuration: `--set` overrides the environment (`VEDETTE_SECTION__KEY`), which overrides `conf.d/*.toml`,
//! the file and the defaults, in this order. Each layer is checked separately, so that messages name file and line.

use super::{Config, Resolved, SECTIONS, resolved::Origins};
use crate::exit::Exit;
use serde::de::IntoDeserializer;
use std::path::{Path, PathBuf};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Sources of the layers.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// The file; absent for defaults only.
    pub(crate) file: Option<PathBuf>,
    /// `VEDETTE_…` variables.
    pub(crate) environment: Vec<(String, String)>,
    /// Variables that begin with `VEDETTE_` and are not settings.
    pub(crate) near_misses: Vec<String>,
    /// `--set KEY=VALUE`.
    pub(crate) set: Vec<String>,
}

impl Sources {
    /// Collects the settings in the process's environment, and the command line's. Only functions of this module read the
    /// environment.
    #[expect(clippy::disallowed_methods, reason = "this is the agent's config loader")]
    pub(crate) fn of_process(file: Option<PathBuf>, set: Vec<String>) -> Self {
        let ours = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with(PREFIX));
        // Kubernetes sets VEDETTE_…_SERVICE_HOST for a service of that name, so only SECTION__KEY is a setting.
        let (environment, others): (Vec<_>, Vec<_>) = ours.partition(|(name, _)| name.contains("__"));
        Self { file, environment, near_misses: others.into_iter().map(|(name, _)| name).collect(), set }
    }
}

/// Directory of the service's credentials (systemd.exec(5), `LoadCredential=`); absent outside of such a service.
#[expect(clippy::disallowed_methods, reason = "this is the agent's config loader")]
pub(crate) fn credentials_dir() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// Whether `NO_COLOR` is set and not empty (<https://no-color.org>).
#[expect(clippy::disallowed_methods, reason = "this is the agent's config loader")]
pub(crate) fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// The first proxy variable that is set. The agent ignores it; other programs do not.
#[expect(clippy::disallowed_methods, reason = "this is the agent's config loader")]
pub(crate) fn proxy_variable() -> Option<&'static str> {
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].into_iter().find(is_set)
}

const PREFIX: &str = "VEDETTE_";

/// Loads, checks and resolves the configuration.
///
/// # Errors
/// [`Exit::Config`] with all problems of all layers.
pub(crate) fn load(sources: &Sources) -> Result<Resolved, Exit> {
    let mut problems = Vec::new();
    let layers = layers(sources, &mut problems);
    resolve(layers, problems)
}

/// Loads the text of a file, without other layers.
#[cfg(fuzzing)]
pub(crate) fn load_text(text: &str) -> Result<Resolved, Exit> {
    resolve(vec![Layer { name: "file".to_owned(), has_lines: true, text: text.to_owned() }], Vec::new())
}

fn resolve(layers: Vec<Layer>, mut problems: Vec<String>) -> Result<Resolved, Exit> {
    let mut merged = toml::Table::new();
    let mut origins = Origins::new();
    for layer in layers {
        layer.check(&mut problems, &mut origins);
        if let Ok(table) = layer.text.parse::<toml::Table>() {
            merge(&mut merged, table);
        }
    }
    if !problems.is_empty() {
        return Err(Exit::Config(problems));
    }
    let config: Config = merged.try_into().map_err(|err: toml::de::Error| Exit::config(err.message()))?;
    Resolved::from_config(config, &origins).map_err(Exit::Config)
}

/// A layer as TOML text.
struct Layer {
    /// Path of a file, or a prefix for messages.
    name: String,
    /// Whether messages name a line.
    has_lines: bool,
    text: String,
}

fn layers(sources: &Sources, problems: &mut Vec<String>) -> Vec<Layer> {
    let mut out = Vec::new();
    if let Some(file) = &sources.file {
        for path in [file.clone()].into_iter().chain(conf_d(file)) {
            match std::fs::read_to_string(&path) {
                Ok(text) => out.push(Layer { name: path.display().to_string(), has_lines: true, text }),
                Err(err) if err.kind() == std::io::ErrorKind::InvalidData => {
                    problems.push(format!("{}: is not UTF-8; save it as UTF-8 text", path.display()));
                }
                Err(err) => problems.push(format!("{}: cannot be read: {err}", path.display())),
            }
        }
    }
    let mut environment = sources.environment.clone();
    environment.sort();
    for name in &sources.near_misses {
        let key = name[PREFIX.len()..].to_lowercase();
        problems.extend(
            likely_setting(&key)
                .map(|setting| format!("environment variable {name}: not a setting; did you mean {PREFIX}{setting}?")),
        );
    }
    for (name, value) in environment {
        let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
        out.push(Layer {
            name: format!("environment variable {name}"),
            has_lines: false,
            text: assignment(&key, &value),
        });
    }
    for setting in &sources.set {
        match setting.split_once('=') {
            Some((key, value)) => out.push(Layer {
                name: format!("--set {key}"),
                has_lines: false,
                text: assignment(key.trim(), value.trim()),
            }),
            None => problems.push(format!("--set {setting}: write KEY=VALUE, as in transport.compression=gzip")),
        }
    }
    out
}

/// `conf.d/*.toml` beside the file, in order of names.
fn conf_d(file: &Path) -> Vec<PathBuf> {
    let dir = file.parent().unwrap_or(Path::new(".")).join("conf.d");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        // Excludes lock files and drafts of editors.
        .filter(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")))
        .collect();
    paths.sort();
    paths
}

/// The setting that a variable with a single underscore probably means: `TRANSPORT__COMPRESSION` for `transport_compression`.
fn likely_setting(key: &str) -> Option<String> {
    SECTIONS.iter().find_map(|section| {
        let key = key.strip_prefix(section.name)?.strip_prefix('_')?;
        let schema = (section.schema)();
        schema.as_value()["properties"].get(key)?;
        Some(format!("{}__{}", section.name, key).to_uppercase())
    })
}

/// The TOML text `key = value`; a value that is not TOML is quoted as a string.
fn assignment(key: &str, value: &str) -> String {
    let as_toml = format!("{key} = {value}");
    if as_toml.parse::<toml::Table>().is_ok() {
        return as_toml;
    }
    format!("{key} = {}", toml::Value::String(value.to_owned()))
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

impl Layer {
    fn check(&self, problems: &mut Vec<String>, origins: &mut Origins) {
        let table = match DeTable::parse(&self.text) {
            Ok(table) => table,
            Err(err) => return problems.push(self.problem_at(err.span(), err.message())),
        };
        for (key, value) in table.into_inner() {
            self.record_origins(key.get_ref(), &value, origins);
            if key.get_ref() == "collectors" {
                self.check_collectors(value, problems);
                continue;
            }
            match SECTIONS.iter().find(|section| section.name == key.get_ref().as_ref()) {
                Some(section) => self.check_one(section.check, value, problems),
                None => {
                    let known = SECTIONS.iter().map(|section| section.name).chain(["collectors"]);
                    problems.push(self.problem_at(Some(key.span()), &unknown("section", key.get_ref(), known)));
                }
            }
        }
    }

    fn check_collectors(&self, value: Spanned<DeValue<'_>>, problems: &mut Vec<String>) {
        let span = value.span();
        let DeValue::Table(collectors) = value.into_inner() else {
            return problems
                .push(self.problem_at(Some(span), "`collectors` holds a table for each collector: [collectors.ID]"));
        };
        for (id, settings) in collectors {
            match vedette_collectors::find(id.get_ref()) {
                Some(spec) => self.check_one(spec.check, settings, problems),
                // Ignores collectors of other platforms, so that one file can serve all hosts.
                None if vedette_collectors::ELSEWHERE.contains(&&**id.get_ref()) => {}
                None => {
                    let known = vedette_collectors::REGISTRY.iter().map(|spec| spec.id);
                    problems.push(self.problem_at(Some(id.span()), &unknown("collector", id.get_ref(), known)));
                }
            }
        }
    }

    fn check_one(
        &self,
        check: fn(toml::de::ValueDeserializer<'_>) -> Result<(), toml::de::Error>,
        value: Spanned<DeValue<'_>>,
        problems: &mut Vec<String>,
    ) {
        let span = value.span();
        if let Err(err) = check(value.into_deserializer()) {
            problems.push(self.problem_at(err.span().or(Some(span)), &nearest_field(err.message())));
        }
    }

    /// Records the origin of each key for later messages.
    fn record_origins(&self, path: &str, value: &Spanned<DeValue<'_>>, origins: &mut Origins) {
        origins.insert(path.to_owned(), self.location(Some(value.span())));
        if let DeValue::Table(table) = value.get_ref() {
            for (key, value) in table {
                self.record_origins(&format!("{path}.{}", key.get_ref()), value, origins);
            }
        }
    }

    fn location(&self, span: Option<std::ops::Range<usize>>) -> String {
        let Some(span) = span.filter(|_| self.has_lines) else { return self.name.clone() };
        let line = self.text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count() + 1;
        format!("{}:{line}", self.name)
    }

    fn problem_at(&self, span: Option<std::ops::Range<usize>>, message: &str) -> String {
        format!("{}: {message}", self.location(span))
    }
}

fn unknown(what: &str, name: &str, known: impl Iterator<Item = &'static str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(near) => format!("unknown {what} `{name}`; did you mean `{near}`?"),
        None => format!("unknown {what} `{name}`; there are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Adds the nearest known name to serde's `unknown field `x`, expected one of `a`, `b``.
fn nearest_field(message: &str) -> String {
    if let Some(name) = message.split("expected struct ").nth(1) {
        return format!("must be a section, as in [{}]", name.to_lowercase());
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(name) = quoted.next().filter(|_| message.starts_with("unknown field")) else {
        return message.to_owned();
    };
    let known: Vec<&str> = quoted.collect();
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("unknown key `{name}`; did you mean `{near}`?"),
        None => format!("unknown key `{name}`; there are {}", known.join(", ")),
    }
}
