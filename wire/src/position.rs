//! Positions of records in their sources.

use serde::{Deserialize, Serialize};

/// Position of a record in its source: half-open, in the source's own unit.
///
/// Bytes for a file, sequence numbers for a journal, a counter for a poll. The positions of a source have no gap and no
/// overlap; that is how loss and repetition are detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position(pub u64, pub u64);
