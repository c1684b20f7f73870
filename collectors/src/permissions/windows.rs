//! Windows: the collectors state no permissions.

use super::Right;

/// Whether this process has a right; there are none to have.
pub(super) fn has(_: &Right) -> bool {
    false
}
