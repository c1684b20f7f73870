//! Security descriptors by their text form (SDDL, MS-DTYP §2.5.1).

use super::wide;
use std::{
    ffi::{OsStr, OsString},
    io,
    os::windows::{ffi::OsStringExt, io::FromRawHandle, io::OwnedHandle},
    path::Path,
    ptr,
};
use windows_sys::Win32::{
    Foundation::{HANDLE, LocalFree},
    Security::{
        ACL,
        Authorization::{
            ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
            SE_FILE_OBJECT, SetNamedSecurityInfoW,
        },
        DACL_SECURITY_INFORMATION, GetSecurityDescriptorDacl, GetTokenInformation, PROTECTED_DACL_SECURITY_INFORMATION,
        PSECURITY_DESCRIPTOR, SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER, TokenUser,
    },
    System::Threading::{GetCurrentProcess, OpenProcessToken},
};

/// Full access to a directory and what is in it, for system, administrators and `{user}`; nothing is inherited from above.
pub(super) const PRIVATE_TREE: &str = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;{user})";
/// Full access to an object without children, for the same accounts.
pub(super) const PRIVATE_OBJECT: &str = "D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;{user})";

/// Memory of the local heap, which the system allocated.
struct Local<T>(*mut T);

impl<T> Drop for Local<T> {
    #[expect(unsafe_code, reason = "there is no safe call for it")]
    fn drop(&mut self) {
        // SAFETY: the memory is of the local heap, and nothing else frees it.
        unsafe { LocalFree(self.0.cast()) };
    }
}

/// A security descriptor.
pub(super) struct Descriptor(Local<std::ffi::c_void>);

impl Descriptor {
    /// A descriptor whose text names this process's user by `{user}`.
    pub(super) fn for_this_user(text: &str) -> io::Result<Self> {
        let text = wide(OsStr::new(&text.replace("{user}", &user_sid()?)));
        let mut descriptor: PSECURITY_DESCRIPTOR = ptr::null_mut();
        // SAFETY: the text ends with NUL; the call stores a pointer to memory that it allocates.
        #[expect(unsafe_code, reason = "there is no safe call for it")]
        let done = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                ptr::null_mut(),
            )
        };
        if done == 0 { Err(io::Error::last_os_error()) } else { Ok(Self(Local(descriptor))) }
    }

    /// Attributes for a new object. They are valid as long as the descriptor.
    pub(super) fn attributes(&self) -> SECURITY_ATTRIBUTES {
        SECURITY_ATTRIBUTES {
            nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: self.0.0,
            bInheritHandle: 0,
        }
    }

    /// Sets the access rights of a directory and of what is in it.
    pub(super) fn apply(&self, dir: &Path) -> io::Result<()> {
        let path = wide(dir.as_os_str());
        let (mut present, mut acl, mut defaulted) = (0, ptr::null_mut::<ACL>(), 0);
        // SAFETY: the descriptor is whole and outlives both calls, and the path ends with NUL.
        #[expect(unsafe_code, reason = "there is no safe call for it")]
        let status = unsafe {
            if GetSecurityDescriptorDacl(self.0.0, &raw mut present, &raw mut acl, &raw mut defaulted) == 0 {
                return Err(io::Error::last_os_error());
            }
            let what = DACL_SECURITY_INFORMATION | PROTECTED_DACL_SECURITY_INFORMATION;
            let (owner, group) = (ptr::null_mut(), ptr::null_mut());
            SetNamedSecurityInfoW(path.as_ptr().cast_mut(), SE_FILE_OBJECT, what, owner, group, acl, ptr::null())
        };
        if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(status.cast_signed())) }
    }
}

/// Security identifier of this process's user: `S-1-5-18`.
#[expect(unsafe_code, reason = "there is no safe call for it")]
fn user_sid() -> io::Result<String> {
    let mut token: HANDLE = ptr::null_mut();
    // SAFETY: the call stores a handle, which `OwnedHandle` closes.
    let token = unsafe {
        if OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) == 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedHandle::from_raw_handle(token)
    };
    // A SID has 68 bytes at the most; words of eight bytes align the structure.
    let (mut buffer, mut size) = ([0_u64; 32], 0);
    // SAFETY: the buffer has the stated size; what is read from it is what the call wrote; the text ends with NUL.
    unsafe {
        let handle = std::os::windows::io::AsRawHandle::as_raw_handle(&token);
        let bytes = size_of_val(&buffer) as u32;
        if GetTokenInformation(handle, TokenUser, buffer.as_mut_ptr().cast(), bytes, &raw mut size) == 0 {
            return Err(io::Error::last_os_error());
        }
        let user = &*buffer.as_ptr().cast::<TOKEN_USER>();
        let mut text = ptr::null_mut::<u16>();
        if ConvertSidToStringSidW(user.User.Sid, &raw mut text) == 0 {
            return Err(io::Error::last_os_error());
        }
        let text = Local(text);
        let length = (0..).take_while(|at| *text.0.add(*at) != 0).count();
        Ok(OsString::from_wide(std::slice::from_raw_parts(text.0, length)).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_user_has_an_identifier_and_a_descriptor() {
        assert!(user_sid().expect("has one").starts_with("S-1-5-"));
        Descriptor::for_this_user(PRIVATE_OBJECT).expect("is one");
    }
}
