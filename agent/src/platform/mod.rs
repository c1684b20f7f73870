//! What differs between operating systems: file identity, private files, limits and memory of the process, signals, the status
//! socket. All other code of the agent is the same everywhere.

#[cfg(unix)]
mod linux;
#[cfg(unix)]
pub(crate) use linux::*;
