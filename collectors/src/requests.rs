//! Requests for files, from the agent to the collector of artifacts.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A verified request, with the limits of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovedRequest {
    /// Id.
    pub request: String,
    /// Path on the host.
    pub path: String,
    /// Globs of the policy; empty for no restriction.
    pub paths: Vec<String>,
    /// Maximum size by the policy.
    pub bytes_max: u64,
    /// Why it is refused without looking at the file.
    pub refused: Option<String>,
}

/// Open requests, from the agent to the collector of artifacts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Requests(Arc<Mutex<Vec<ApprovedRequest>>>);

impl Requests {
    /// Adds requests after the open ones.
    pub fn add(&self, approved: Vec<ApprovedRequest>) {
        self.0.lock().extend(approved);
    }

    /// Open requests.
    pub fn waiting(&self) -> Vec<ApprovedRequest> {
        self.0.lock().clone()
    }

    /// Removes a request that was answered in full.
    pub fn answered(&self, request: &str) {
        self.0.lock().retain(|approved| approved.request != request);
    }

    /// Ids of open requests.
    pub fn ids(&self) -> Vec<String> {
        self.waiting().into_iter().map(|approved| approved.request).collect()
    }
}
