//! Names of accounts by their security identifiers (`LookupAccountSid`): of this machine, and of its domain, which may be remote.

use std::{
    cell::RefCell,
    collections::HashMap,
    ptr::{null, null_mut},
};
use windows_sys::Win32::{
    Foundation::LocalFree,
    Security::{Authorization::ConvertStringSidToSidW, LookupAccountSidW, PSID},
};

/// Maximum length of a name of an account or a domain (UNLEN and DNLEN of lmcons.h), and more.
const NAME_LENGTH_MAX: usize = 512;

/// Names, until they are forgotten; absent ones as well, so that they are looked up once.
#[derive(Default)]
pub(super) struct Accounts(RefCell<HashMap<String, Option<String>>>);

impl Accounts {
    /// Discards all names.
    pub(super) fn forget(&mut self) {
        self.0.get_mut().clear();
    }

    /// Name of an account: `NT AUTHORITY\\SYSTEM`.
    pub(super) fn name(&self, sid: &str) -> Option<String> {
        self.0.borrow_mut().entry(sid.to_owned()).or_insert_with(|| look_up(sid)).clone()
    }
}

#[expect(unsafe_code, reason = "there is no safe call for it")]
fn look_up(sid: &str) -> Option<String> {
    let text: Vec<u16> = sid.encode_utf16().chain([0]).collect();
    let mut binary: PSID = null_mut();
    // SAFETY: the text ends with NUL; the call stores a pointer to memory that `LocalFree` frees.
    if unsafe { ConvertStringSidToSidW(text.as_ptr(), &raw mut binary) } == 0 {
        return None;
    }
    let (mut name, mut domain) = ([0_u16; NAME_LENGTH_MAX], [0_u16; NAME_LENGTH_MAX]);
    let (mut name_length, mut domain_length, mut kind) = (NAME_LENGTH_MAX as u32, NAME_LENGTH_MAX as u32, 0);
    // SAFETY: the identifier is the one above, and the buffers have the stated lengths.
    let done = unsafe {
        let found = LookupAccountSidW(
            null(),
            binary,
            name.as_mut_ptr(),
            &raw mut name_length,
            domain.as_mut_ptr(),
            &raw mut domain_length,
            &raw mut kind,
        );
        LocalFree(binary);
        found
    };
    let text =
        |buffer: &[u16], length: u32| String::from_utf16_lossy(buffer.get(..length as usize).unwrap_or_default());
    let (name, domain) = (text(&name, name_length), text(&domain, domain_length));
    match (done, domain.is_empty()) {
        (0, _) => None,
        (_, true) => Some(name),
        (_, false) => Some(format!(r"{domain}\{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_accounts_have_names_and_others_none() {
        let accounts = Accounts::default();
        assert!(accounts.name("S-1-5-18").is_some_and(|name| name.to_uppercase().ends_with("SYSTEM")));
        assert_eq!((accounts.name("S-1-5-21-1-2-3-4"), accounts.name("nonsense")), (None, None));
        assert_eq!(accounts.0.borrow().len(), 3);
    }
}
