//! `GET /v1/positions[/{collector}/{source}]`: stored positions of an agent's sources, from the first or after one.

use super::{Peer, Receiver, batch::admitted, problem::Refusal};
use axum::{
    Extension,
    extract::{Path, State},
    http::{HeaderName, header},
};
use std::sync::Arc;

type Page = ([(HeaderName, &'static str); 1], Vec<u8>);

pub(super) async fn first(receiver: State<Arc<Receiver>>, peer: Extension<Option<Peer>>) -> Result<Page, Refusal> {
    after(receiver, peer, Path(Default::default())).await
}

pub(super) async fn after(
    State(receiver): State<Arc<Receiver>>,
    Extension(peer): Extension<Option<Peer>>,
    Path((collector, source)): Path<(String, String)>,
) -> Result<Page, Refusal> {
    let (peer, _) = admitted(&receiver, peer).await?;
    let page = receiver.control.positions(peer.organization, peer.agent, (&collector, &source)).await;
    let page = page.map_err(|err| Refusal::internal(&err))?;
    let bytes = rmp_serde::to_vec_named(&page).map_err(|err| Refusal::internal(&err.into()))?;
    Ok(([(header::CONTENT_TYPE, "application/vnd.msgpack")], bytes))
}
