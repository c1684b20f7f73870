//! `POST /v1/pair/join`: the keys of this workspace, for a new secondary.

use crate::{
    api::{
        Api, ApiError,
        extract::{TokenHolder, TokenRequest},
    },
    clock::now,
    keys::token_digest,
    replication::{self, JoinReply, JoinRequest},
};
use axum::Json;
use vedette_wire::ProblemCode;

impl TokenRequest for JoinRequest {
    type Grant = ();

    async fn authenticate(&self, api: &Api) -> Result<(), ApiError> {
        // Checked before the token is used up.
        if self.geo != api.geo {
            let title = format!(
                "both workspaces of a pair must be in the same geography, and this workspace is in {}",
                api.geo
            );
            return Err(ApiError::new(ProblemCode::Geo, title));
        }
        if api.control.use_pair_token(&token_digest(&self.token), now()).await? {
            return Ok(());
        }
        tracing::warn!("refused a workspace that tried to join as secondary");
        let title = "the token is unknown, used up or expired; create one with `vedette-workspace token pair`";
        Err(ApiError::new(ProblemCode::Token, title))
    }
}

pub(in crate::api) async fn join(holder: TokenHolder<JoinRequest>) -> Result<Json<JoinReply>, ApiError> {
    let TokenHolder { api, .. } = holder;
    let keys = replication::join_reply(&api.dir, &api.control).await?;
    tracing::info!("a secondary workspace has joined");
    Ok(Json(keys))
}
