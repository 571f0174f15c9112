//! Access control lists.

use std::fs::Metadata;
use std::path::Path;

use windows_permissions::constants::{SeObjectType, SecurityInformation};
use windows_permissions::wrappers::{
    ConvertSecurityDescriptorToStringSecurityDescriptor, GetNamedSecurityInfo,
};

use super::{Everybody, Holds, sddl};

/// `None` when the list cannot be read, for example because the file system keeps none.
pub(super) fn everybody(path: &Path, _: &Metadata) -> Option<Everybody> {
    let list = SecurityInformation::Dacl;
    let found = GetNamedSecurityInfo(path, SeObjectType::SE_FILE_OBJECT, list).ok()?;
    let text = ConvertSecurityDescriptorToStringSecurityDescriptor(&found, list).ok()?;
    let text = text.to_string_lossy();
    let text = text.trim_end_matches(char::from(0));
    let (reads, writes) = sddl::everybody(text);
    Some(Everybody {
        reads,
        writes,
        shown: text.to_owned(),
    })
}

/// `*S-1-5-18` is the system, `*S-1-5-32-544` are administrators, whatever they are called here.
pub(super) fn remedy(path: &str, holds: Holds) -> String {
    let owners = format!(r#"icacls "{path}" /inheritance:r /grant:r *S-1-5-18:F *S-1-5-32-544:F"#);
    match holds {
        Holds::Secret => {
            format!(r#"{owners} "NT SERVICE\NowConnectAgent:R", or whichever account runs this"#)
        }
        Holds::Trust => format!("{owners} *S-1-5-32-545:R"),
    }
}
