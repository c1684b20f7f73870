//! The organization's policy: the one in force, and decisions on collectors.

mod decide;
mod store;

pub(crate) use decide::{Decision, decide};
pub(crate) use store::{PolicyStatus, PolicyStore, is_signature_valid, store_policy};

#[cfg(test)]
mod tests;
