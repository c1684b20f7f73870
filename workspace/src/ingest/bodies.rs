//! Memory for the bodies of batches in transit, divided between organizations.
//!
//! A body counts with its announced length, from before it is read until it has landed. An organization may use as much as is
//! left for the others: a single one half of the memory, two a third each. The first body of another organization gets at most
//! half of what is left, so that a batch of usual size always fits.

use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use vedette_wire::OrganizationId;

/// The memory and its users.
#[derive(Debug)]
pub(super) struct Bodies {
    bytes_max: u64,
    held: Mutex<HashMap<OrganizationId, u64>>,
}

/// Memory for one body, until dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    bodies: Arc<Bodies>,
    organization: OrganizationId,
    bytes: u64,
}

impl Bodies {
    /// Memory of a size for all organizations.
    pub(super) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes_max, held: Mutex::default() })
    }

    /// Reserves memory for a body; absent if its organization has its share.
    pub(super) fn reserve(self: &Arc<Self>, organization: OrganizationId, bytes: u64) -> Option<Reserved> {
        let mut held = self.held.lock();
        let total: u64 = held.values().sum();
        let own = held.get(&organization).copied().unwrap_or(0);
        let left = self.bytes_max.checked_sub(total + bytes)?;
        if own + bytes > left {
            return None;
        }
        held.insert(organization, own + bytes);
        Some(Reserved { bodies: Arc::clone(self), organization, bytes })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut held = self.bodies.held.lock();
        if let Some(own) = held.get_mut(&self.organization) {
            *own = own.saturating_sub(self.bytes);
            if *own == 0 {
                held.remove(&self.organization);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn organization(number: u8) -> OrganizationId {
        OrganizationId::from_uuid(uuid::Uuid::from_bytes([number; 16]))
    }

    #[test]
    fn one_organization_takes_half_and_leaves_room_for_others() {
        let bodies = Bodies::new(100);
        let take = |number: u8| std::iter::from_fn(|| bodies.reserve(organization(number), 1)).collect::<Vec<_>>();
        let loud = take(1);
        assert_eq!(loud.len(), 50);
        let second = take(2);
        assert_eq!(second.len(), 25);
        assert!(bodies.reserve(organization(3), 12).is_some(), "a quiet one finds room");
        assert!(bodies.reserve(organization(3), 30).is_none());
        drop(loud);
        assert_eq!(take(3).len(), 37, "what was given back is free");
        drop(second);
        // Any number of bodies of the maximum length leave something.
        let large: Vec<_> = (10..200).filter_map(|number| bodies.reserve(organization(number), 16)).collect();
        assert!(large.len() > 3 && bodies.reserve(organization(250), 4).is_some(), "{}", large.len());
    }
}
