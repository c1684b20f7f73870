//! Keys, certificates and tokens of a workspace.

mod authority;
mod signer;
mod token;

pub(crate) use authority::{Authority, PAIR, check_names, create, take_over, write_private};
pub(crate) use signer::Signer;
pub(crate) use token::{new_token, token_digest};
