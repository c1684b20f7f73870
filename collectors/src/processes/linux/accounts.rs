//! Names of users and groups: passwd(5) and group(5) of the host, and the name service (nsswitch.conf(5): LDAP, SSSD) if the
//! host is this machine.

use crate::CollectorContext;
use nix::unistd::{Gid, Group, Uid, User};
use std::{cell::RefCell, collections::HashMap};
use vedette_wire::body::{Principal, PrincipalId};

/// Names by id.
#[derive(Default)]
pub(super) struct Accounts {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
    /// Answers of the name service, which may be remote, until they expire.
    name_service: RefCell<HashMap<(bool, u32), Option<String>>>,
    this_host: bool,
}

impl Accounts {
    /// Reads the files again, which is cheap. Keeps answers of the name service.
    pub(super) fn refresh(&mut self, context: &CollectorContext) {
        let table = |path: &str| {
            let text = context.text(path).unwrap_or_default();
            // name:password:id:…; the first name of an id counts, as in getpwuid(3).
            text.lines()
                .rev()
                .filter_map(|line| {
                    let mut fields = line.split(':');
                    let (name, id) = (fields.next()?, fields.nth(1)?);
                    Some((id.parse().ok()?, name.to_owned()))
                })
                .collect()
        };
        self.users = table("/etc/passwd");
        self.groups = table("/etc/group");
        self.this_host = context.is_this_host();
    }

    /// Discards answers of the name service.
    pub(super) fn forget(&mut self) {
        self.name_service.get_mut().clear();
    }

    pub(super) fn user(&self, id: u32) -> Principal {
        let name = self.users.get(&id).cloned();
        let ask = || Some(User::from_uid(Uid::from_raw(id)).ok()??.name);
        Principal { id: PrincipalId::Number(id), name: name.or_else(|| self.ask(false, id, ask)) }
    }

    pub(super) fn group(&self, id: u32) -> Principal {
        let name = self.groups.get(&id).cloned();
        let ask = || Some(Group::from_gid(Gid::from_raw(id)).ok()??.name);
        Principal { id: PrincipalId::Number(id), name: name.or_else(|| self.ask(true, id, ask)) }
    }

    fn ask(&self, group: bool, id: u32, ask: impl FnOnce() -> Option<String>) -> Option<String> {
        if !self.this_host {
            return None;
        }
        self.name_service.borrow_mut().entry((group, id)).or_insert_with(ask).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_file_has_is_asked_for_once_and_only_of_this_machine() {
        let mut accounts = Accounts::default();
        let dir = tempfile::tempdir().expect("temp dir");
        let context = |root: &std::path::Path| CollectorContext::new(root, std::sync::Arc::new(|| 1));
        accounts.refresh(&context(dir.path()));
        assert_eq!(accounts.user(0), Principal { id: PrincipalId::Number(0), name: None });
        // The files are empty, so the name service knows root's name.
        accounts.this_host = true;
        assert_eq!(accounts.user(0).name.as_deref(), Some("root"));
        assert_eq!(accounts.group(0).name.as_deref(), Some("root"));
        assert_eq!(accounts.user(3_999_999_999).name, None);
        assert_eq!(accounts.name_service.borrow().len(), 3);
        accounts.forget();
        assert!(accounts.name_service.borrow().is_empty());
    }
}
