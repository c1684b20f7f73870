//! Why a collector cannot be built, or cannot observe.

/// Why a collector cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("[collectors.{collector}] {message}")]
pub struct BuildError {
    /// Id of the collector.
    pub collector: &'static str,
    /// The problem and its remedy.
    pub message: String,
}

/// Why a collector cannot observe.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The host has no such source, which is not an error.
    #[error("{0}")]
    Absent(String),
    /// The source cannot be read.
    #[error("cannot read {what}: {source}; {advice}")]
    Read {
        /// Path, or name of a kernel interface.
        what: String,
        /// Cause.
        #[source]
        source: std::io::Error,
        /// Remedy.
        advice: &'static str,
    },
    /// The source holds its share of the queue.
    #[error("{0} waits: it fills its share of the queue")]
    NoRoom(String),
    /// The agent is stopping.
    #[error("stopped")]
    Stopped,
}

impl CollectError {
    /// A source that cannot be read, with advice for the kind of error.
    pub fn read(what: impl Into<String>, source: std::io::Error) -> Self {
        let advice = match source.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "give the agent's user the right to read it (group adm or systemd-journal, or a capability)"
            }
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::InvalidInput => "it is skipped",
            _ => "the collector retries",
        };
        Self::Read { what: what.into(), source, advice }
    }
}
