//! Just enough LDAP to see that a directory answers: reading the root DSE, which every server has and
//! shows without a bind (RFC 4512 section 5.1), and StartTLS (RFC 4511 section 4.14).

/// Bytes of answers that are looked at.
pub(super) const MOST_ANSWER: usize = 64 * 1024;

/// Message 1: a search for the base object "" with `(objectClass=*)`, for `supportedLDAPVersion`.
pub(super) const READ_ROOT_DSE: &[u8] = b"\x30\x3b\x02\x01\x01\x63\x36\
    \x04\x00\x0a\x01\x00\x0a\x01\x00\x02\x01\x00\x02\x01\x00\x01\x01\x00\
    \x87\x0bobjectClass\x30\x16\x04\x14supportedLDAPVersion";
/// Message 2: an unbind.
pub(super) const UNBIND: &[u8] = b"\x30\x05\x02\x01\x02\x42\x00";
/// Message 3: the extended operation of StartTLS.
pub(super) const START_TLS: &[u8] = b"\x30\x1d\x02\x01\x03\x77\x18\x80\x161.3.6.1.4.1.1466.20037";

const ROOT_DSE_ID: u32 = 1;
const START_TLS_ID: u32 = 3;
/// `messageID` of what the server says unasked.
const UNSOLICITED_ID: u32 = 0;

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;
const SEARCH_ENTRY: u8 = 0x64;
const SEARCH_DONE: u8 = 0x65;
const SEARCH_REFERENCE: u8 = 0x73;
const EXTENDED_RESPONSE: u8 = 0x78;
const INTERMEDIATE: u8 = 0x79;

/// `resultCode`s (RFC 4511 section 4.1.9).
const SUCCESS: u32 = 0;
const BUSY: u32 = 51;
const UNAVAILABLE: u32 = 52;

/// Judges what came so far in answer to [`READ_ROOT_DSE`]: `None` while that is not enough. A server
/// that answers with anything but "busy" or "unavailable" is well, be it that it shows nothing to
/// strangers.
///
/// # Errors
/// It does not speak LDAP, or says that it is not well.
pub(super) fn root_dse(answer: &[u8]) -> Result<Option<()>, String> {
    let mut rest = Reader(answer);
    while let Some(message) = rest.message()? {
        let (id, op, mut content) = message.open()?;
        match (id, op) {
            (ROOT_DSE_ID, SEARCH_ENTRY) => {
                content.expect(OCTETS)?;
                content.expect(SEQUENCE)?;
                return Ok(Some(()));
            }
            (ROOT_DSE_ID, SEARCH_DONE) => {
                return match content.number(ENUMERATED)? {
                    BUSY => Err("the directory says that it is busy (result 51)".to_owned()),
                    UNAVAILABLE => {
                        Err("the directory says that it is unavailable (result 52)".to_owned())
                    }
                    _ => Ok(Some(())),
                };
            }
            (ROOT_DSE_ID, SEARCH_REFERENCE | INTERMEDIATE) => {}
            (UNSOLICITED_ID, EXTENDED_RESPONSE) => return Err(disconnected(content)),
            _ => return Err(no_ldap("an answer to something else")),
        }
    }
    Ok(None)
}

/// The same for the answer to [`START_TLS`].
///
/// # Errors
/// It does not speak LDAP, or does not offer TLS.
pub(super) fn start_tls(answer: &[u8]) -> Result<Option<()>, String> {
    let mut rest = Reader(answer);
    let Some(message) = rest.message()? else {
        return Ok(None);
    };
    let (id, op, mut content) = message.open()?;
    match (id, op) {
        (START_TLS_ID, EXTENDED_RESPONSE) => match content.number(ENUMERATED)? {
            // What comes before the handshake can be from anybody.
            SUCCESS if !rest.0.is_empty() => Err(no_ldap("bytes between StartTLS and TLS")),
            SUCCESS => Ok(Some(())),
            code => Err(format!(
                "the directory refuses StartTLS (result {code}): has it a certificate?"
            )),
        },
        (UNSOLICITED_ID, EXTENDED_RESPONSE) => Err(disconnected(content)),
        _ => Err(no_ldap("an answer to something else")),
    }
}

/// Notice of disconnection (RFC 4511 section 4.4.1).
fn disconnected(mut content: Reader<'_>) -> String {
    match content.number(ENUMERATED) {
        Ok(code) => {
            format!("the directory ends the connection unasked (result {code}): see its log")
        }
        Err(fault) => fault,
    }
}

fn no_ldap(what: &str) -> String {
    format!("the target does not speak LDAP ({what}): is the probe's type right, or is it ldaps?")
}

/// Takes elements (definite lengths, tags of one byte: RFC 4511 section 5.1) from the front of bytes.
#[derive(Debug, Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next whole message; `None` while it is not.
    fn message(&mut self) -> Result<Option<Reader<'a>>, String> {
        match self.0.split_first() {
            Some((&SEQUENCE, _)) => {}
            Some(_) => return Err(no_ldap("no message begins like that")),
            None => return Ok(None),
        }
        Ok(self.next()?.map(|(_, content)| content))
    }

    /// The id, the operation and its content, of a message.
    fn open(mut self) -> Result<(u32, u8, Reader<'a>), String> {
        let id = self.number(INTEGER)?;
        let (op, content) = self.next()?.ok_or_else(cut)?;
        Ok((id, op, content))
    }

    /// The next element; `None` when not all of it is there.
    fn next(&mut self) -> Result<Option<(u8, Reader<'a>)>, String> {
        let [tag, first, rest @ ..] = self.0 else {
            return Ok(None);
        };
        let (len, rest) = match first {
            0..=0x7f => (usize::from(*first), rest),
            0x81..=0x84 => {
                let Some((bytes, rest)) = rest.split_at_checked(usize::from(first & 0x7f)) else {
                    return Ok(None);
                };
                let len = bytes
                    .iter()
                    .fold(0, |len, byte| (len << 8) | usize::from(*byte));
                (len, rest)
            }
            _ => return Err(no_ldap("a length is indefinite or above 4 GiB")),
        };
        if len > MOST_ANSWER {
            return Err(no_ldap("an answer is longer than 64 KiB"));
        }
        let Some((content, rest)) = rest.split_at_checked(len) else {
            return Ok(None);
        };
        self.0 = rest;
        Ok(Some((*tag, Reader(content))))
    }

    fn expect(&mut self, tag: u8) -> Result<Reader<'a>, String> {
        match self.next()? {
            Some((found, content)) if found == tag => Ok(content),
            _ => Err(cut()),
        }
    }

    /// The next element as a number that is not negative.
    fn number(&mut self, tag: u8) -> Result<u32, String> {
        let bytes = self.expect(tag)?.0;
        let fits = (1..=5).contains(&bytes.len()) && bytes[0] < 0x80;
        let value = bytes
            .iter()
            .take(5)
            .fold(0, |value, byte| (value << 8) | u64::from(*byte));
        let value = u32::try_from(value).ok().filter(|_| fits);
        value.ok_or_else(|| no_ldap("a number is out of range"))
    }
}

fn cut() -> String {
    no_ldap("an element is missing")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An entry with one attribute, as OpenLDAP sends it.
    const ENTRY: &[u8] = b"\x30\x24\x02\x01\x01\x64\x1f\x04\x00\x30\x1b\x30\x19\
        \x04\x14supportedLDAPVersion\x31\x01\x04";
    const REFERENCE: &[u8] = b"\x30\x08\x02\x01\x01\x73\x03\x04\x01a";

    fn done(id: u8, op: u8, code: u8) -> Vec<u8> {
        vec![0x30, 12, 2, 1, id, op, 7, 10, 1, code, 4, 0, 4, 0]
    }

    #[test]
    fn questions_are_as_long_as_they_say() {
        for question in [READ_ROOT_DSE, UNBIND, START_TLS] {
            let mut reader = Reader(question);
            let (_, op, _) = reader
                .message()
                .expect("fit")
                .expect("whole")
                .open()
                .expect("fit");
            assert!([0x63, 0x42, 0x77].contains(&op) && reader.0.is_empty());
        }
    }

    #[test]
    fn a_directory_that_answers_is_well_whatever_it_shows() {
        for cut in 0..ENTRY.len() {
            assert_eq!(root_dse(&ENTRY[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(root_dse(ENTRY), Ok(Some(())));
        // Insufficient access rights, strong authentication required.
        for code in [0, 50, 8] {
            assert_eq!(root_dse(&done(1, SEARCH_DONE, code)), Ok(Some(())));
        }
        assert_eq!(root_dse(REFERENCE), Ok(None));
        let both = [REFERENCE, &done(1, SEARCH_DONE, 0)].concat();
        assert_eq!(root_dse(&both), Ok(Some(())));
    }

    #[test]
    fn what_is_not_well_says_why() {
        let said = |answer: &[u8]| root_dse(answer).expect_err("not well");
        assert!(said(&done(1, SEARCH_DONE, 51)).contains("busy"));
        assert!(said(&done(1, SEARCH_DONE, 52)).contains("unavailable"));
        assert!(said(&done(0, EXTENDED_RESPONSE, 52)).contains("unasked"));
        assert!(said(&done(9, SEARCH_DONE, 0)).contains("something else"));
        assert!(said(b"HTTP/1.1 400 Bad Request").contains("not speak LDAP"));
        assert!(
            said(b"\x15\x03\x03\x00\x02\x02\x28").contains("ldaps"),
            "a TLS alert"
        );
        assert!(said(b"\x30\x84\x7f\xff\xff\xff").contains("64 KiB"));
        assert!(said(b"\x30\x80").contains("indefinite"));
    }

    #[test]
    fn tls_begins_only_where_it_was_granted() {
        assert_eq!(start_tls(&done(3, EXTENDED_RESPONSE, 0)), Ok(Some(())));
        assert_eq!(start_tls(&done(3, EXTENDED_RESPONSE, 0)[..5]), Ok(None));
        assert!(start_tls(&done(3, EXTENDED_RESPONSE, 2)).is_err());
        let more = [done(3, EXTENDED_RESPONSE, 0), vec![0x16]].concat();
        assert!(start_tls(&more).is_err(), "injected before the handshake");
    }

    proptest! {
        #[test]
        fn nothing_panics(answer in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (root_dse(&answer), start_tls(&answer));
        }

        /// Whoever reads piece by piece and whoever reads it at once agree.
        #[test]
        fn more_bytes_change_no_verdict(
            answer in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0x30), Just(0x02), Just(0x01)], 0..60),
        ) {
            let mut verdict = None;
            for len in 0..=answer.len() {
                let now = root_dse(&answer[..len]);
                if let Some(before) = &verdict {
                    prop_assert_eq!(&now, before);
                } else if now != Ok(None) {
                    verdict = Some(now);
                }
            }
        }
    }
}
