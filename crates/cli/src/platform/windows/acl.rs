//! Who may touch a file or a directory.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use windows_permissions::constants::{SeObjectType, SecurityInformation};
use windows_permissions::wrappers::SetNamedSecurityInfo;
use windows_permissions::{LocalBox, SecurityDescriptor};

/// What a service may do with a directory and what is in it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rights {
    /// Read and enter.
    Read,
    /// And make, change and remove files.
    Modify,
}

/// Keeps all but its owner, administrators and the system from a file.
pub(super) fn keep_private(path: &Path) -> io::Result<()> {
    replace(path, "D:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;OW)")
}

/// Keeps all but the service, administrators and the system from a directory and what is in it.
pub(super) fn let_service(directory: &Path, name: &str, rights: Rights) -> io::Result<()> {
    let rights = match rights {
        Rights::Read => "0x1200a9",
        Rights::Modify => "0x1301bf",
    };
    let sid = service_sid(name);
    replace(
        directory,
        &format!("D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;{rights};;;{sid})"),
    )
}

/// The identifier of the account `NT SERVICE\name`, which Windows makes of the name.
fn service_sid(name: &str) -> String {
    let name = name.to_uppercase();
    let bytes: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &bytes);
    let words = hash.as_ref().as_chunks::<4>().0;
    words.iter().fold("S-1-5-80".to_owned(), |mut sid, word| {
        // Writing to a String cannot fail.
        let _ = write!(sid, "-{}", u32::from_le_bytes(*word));
        sid
    })
}

/// Puts the list of a descriptor in the place of that of `path`, and hands it down.
fn replace(path: &Path, descriptor: &str) -> io::Result<()> {
    let descriptor: LocalBox<SecurityDescriptor> = descriptor.parse()?;
    SetNamedSecurityInfo(
        path,
        SeObjectType::SE_FILE_OBJECT,
        SecurityInformation::Dacl | SecurityInformation::ProtectedDacl,
        None,
        None,
        descriptor.dacl(),
        None,
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn accounts_of_services_are_found() {
        assert_eq!(
            super::service_sid("TrustedInstaller"),
            "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"
        );
    }
}
