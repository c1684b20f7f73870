//! Tables: written from landed batches in the background, verified, and queried.

mod materialise;
mod query;
mod verify;

pub(crate) use materialise::start;
pub(crate) use query::{check_statement, query};
pub(crate) use verify::{foreign_batches, verify};

use crate::store::Marks;
use vedette_lake::{Mark, Versions};

/// Marks in the lake's form.
fn versions(marks: Marks) -> Versions {
    marks.into_iter().map(|(table, (version, rows))| (table, Mark { version, rows })).collect()
}
