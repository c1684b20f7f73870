//! Extractors: the only way from a request to the workspace, so that no handler can forget authentication.

mod agent;
mod json;
mod pair;
mod token;

pub(super) use agent::{AuthenticatedAgent, PacedAgent};
pub(super) use json::{ValidJson, read};
pub(super) use pair::PairPeer;
pub(super) use token::{TokenHolder, TokenRequest};

use super::Api;
use crate::store::AgentKey;
use axum::http::request::Parts;
use std::{net::IpAddr, sync::Arc};

/// The API behind authentication: only extractors reach it.
#[derive(Clone)]
pub(super) struct Gate(Arc<Api>);

impl Gate {
    pub(super) fn new(api: Api) -> Self {
        Self(Arc::new(api))
    }
}

/// The connection of a request, as TLS authenticated it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    /// Network of the peer's address.
    pub(crate) from: IpAddr,
    /// Agent of the client certificate.
    pub(crate) agent: Option<AgentKey>,
    /// Whether the client certificate is the other workspace's of the pair.
    pub(crate) is_pair: bool,
}

fn connection(parts: &Parts) -> Connection {
    *parts.extensions.get().expect("the server adds the connection to each request")
}
