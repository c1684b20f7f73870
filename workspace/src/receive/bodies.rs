//! Memory for the bodies of batches that are on their way, shared by organizations.
//!
//! A body counts from before it is read until it has landed, with the length that it announces. An organization may have as
//! much under way as is left for the others: one alone takes half of the memory, two take a third each. The first body of one
//! that has nothing takes half of what is left at the most, so that something is always left for a batch of usual size.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use vedette_wire::OrganizationId;

/// The memory, and who has it.
#[derive(Debug)]
pub(super) struct Bodies {
    bytes_max: u64,
    held: Mutex<HashMap<OrganizationId, u64>>,
}

/// Memory for one body, until this is dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    bodies: Arc<Bodies>,
    organization: OrganizationId,
    bytes: u64,
}

impl Bodies {
    /// So many bytes for all.
    pub(super) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes_max, held: Mutex::default() })
    }

    /// Memory for a body of so many bytes; absent where its organization has as much as it may.
    pub(super) fn reserve(self: &Arc<Self>, organization: OrganizationId, bytes: u64) -> Option<Reserved> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut held = self.bodies.held.lock().unwrap_or_else(PoisonError::into_inner);
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
        // Any number that announce as much as may be leave something.
        let large: Vec<_> = (10..200).filter_map(|number| bodies.reserve(organization(number), 16)).collect();
        assert!(large.len() > 3 && bodies.reserve(organization(250), 4).is_some(), "{}", large.len());
    }
}
