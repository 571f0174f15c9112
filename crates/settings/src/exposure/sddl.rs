//! What an access control list grants to everybody, from its text form (Security Descriptor Definition
//! Language, [MS-DTYP] section 2.5.1).

/// Everybody, everybody logged on, users, anonymous, guests, logged on here, logged on from elsewhere.
const EVERYBODY: [&str; 14] = [
    "WD",
    "S-1-1-0",
    "AU",
    "S-1-5-11",
    "BU",
    "S-1-5-32-545",
    "AN",
    "S-1-5-7",
    "BG",
    "S-1-5-32-546",
    "IU",
    "S-1-5-4",
    "NU",
    "S-1-5-2",
];
/// Reading data; all, by the generic names and by those of files.
const READ: u32 = 0x0000_0001 | GENERIC_READ | GENERIC_ALL;
/// Writing and appending data; deleting, changing the list and the owner.
const WRITE: u32 = 0x0000_0006 | 0x000D_0000 | GENERIC_WRITE | GENERIC_ALL;
const GENERIC_READ: u32 = 0x8000_0000;
const GENERIC_WRITE: u32 = 0x4000_0000;
const GENERIC_ALL: u32 = 0x1000_0000;

/// Whether everybody may read, and may write. Entries that deny are left out of account, so a list with
/// some may be judged too harshly.
pub(super) fn everybody(descriptor: &str) -> (bool, bool) {
    let Some((_, list)) = descriptor.split_once("D:") else {
        return (true, true);
    };
    if list.starts_with("NO_ACCESS_CONTROL") {
        return (true, true);
    }
    let granted = list
        .split('(')
        .skip(1)
        .filter_map(granted)
        .fold(0, |all, rights| all | rights);
    (granted & READ != 0, granted & WRITE != 0)
}

/// The rights that an entry grants to everybody: `A;flags;rights;object;inherited object;account`.
fn granted(entry: &str) -> Option<u32> {
    let mut fields = entry.split(')').next()?.split(';');
    let kind = fields.next()?;
    let flags = fields.next()?;
    let rights = fields.next()?;
    let account = fields.nth(2)?;
    // Allowed, also on a condition; not only for what is made in a directory.
    let applies = matches!(kind, "A" | "XA") && !pairs(flags).any(|flag| flag == "IO");
    (applies && EVERYBODY.contains(&account)).then(|| mask(rights))
}

fn mask(rights: &str) -> u32 {
    if let Some(hex) = rights.strip_prefix("0x") {
        return u32::from_str_radix(hex, 16).unwrap_or(u32::MAX);
    }
    pairs(rights).fold(0, |mask, right| mask | named(right))
}

fn named(right: &str) -> u32 {
    match right {
        "GA" | "FA" => GENERIC_ALL,
        "GR" | "FR" => GENERIC_READ,
        "GW" | "FW" => GENERIC_WRITE,
        "CC" => 0x0000_0001,
        "DC" => 0x0000_0002,
        "LC" => 0x0000_0004,
        "SD" => 0x0001_0000,
        "WD" => 0x0004_0000,
        "WO" => 0x0008_0000,
        _ => 0,
    }
}

fn pairs(text: &str) -> impl Iterator<Item = &str> {
    (0..text.len())
        .step_by(2)
        .filter_map(|at| text.get(at..at + 2))
}

#[cfg(test)]
mod tests {
    use super::everybody;

    #[test]
    fn lists_are_judged_by_what_everybody_gets() {
        for (descriptor, reads, writes) in [
            // A protected directory: the system and administrators.
            ("D:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)", false, false),
            // What C:\ProgramData hands down to files in it.
            (
                "D:AI(A;ID;FA;;;SY)(A;ID;FA;;;BA)(A;ID;0x1200a9;;;BU)",
                true,
                false,
            ),
            ("D:(A;;FR;;;WD)", true, false),
            ("D:(A;;0x1301bf;;;AU)", true, true),
            ("D:(A;;FRFW;;;S-1-1-0)", true, true),
            ("D:(A;;FX;;;BU)", false, false),
            // Only for what is made below; denied; somebody.
            (
                "D:(A;OICIIO;GA;;;WD)(D;;FA;;;WD)(A;;FA;;;S-1-5-21-1-2-3-500)",
                false,
                false,
            ),
            // None at all: everybody may do everything.
            ("D:NO_ACCESS_CONTROL", true, true),
            ("O:BAG:SY", true, true),
            ("D:", false, false),
            ("D:(A;;0xzz;;;WD)(A;;FA", true, true),
            ("D:(é;é)", false, false),
        ] {
            assert_eq!(everybody(descriptor), (reads, writes), "{descriptor}");
        }
    }
}
