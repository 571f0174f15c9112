//! What targets answer to the probes of a hub.

use nowconnect_hub::fuzzing::probes::{http_status, root_dse, start_tls};

/// Any bytes as the answer of a directory and of a web server: what was decided stays so whatever
/// follows, and what passes for well looks like it at a second glance.
pub fn answer(data: &[u8]) {
    let (directory, server) = (root_dse(data), http_status(data));
    for cut in [data.len() / 3, data.len() / 2, data.len().saturating_sub(1)] {
        let before = &data[..cut];
        if let Some(decided) = root_dse(before).transpose() {
            assert_eq!(Some(decided), directory.clone().transpose());
        }
        if let Some(decided) = http_status(before).transpose() {
            assert_eq!(Some(decided), server.clone().transpose());
        }
    }
    if directory == Ok(Some(())) {
        assert_eq!(data[0], 0x30);
    }
    if start_tls(data) == Ok(Some(())) {
        // One message and nothing else: its length is all there is.
        let header = data.len() - length(data);
        assert!((2..=6).contains(&header), "{header}");
    }
    if let Ok(Some(status)) = server {
        let text = String::from_utf8_lossy(data);
        let mut lines = (0..=9).map(|minor| format!("HTTP/1.{minor} {status}"));
        assert!(text.starts_with("HTTP/1.") && lines.any(|line| text.contains(&line)));
    }
    for refused in [directory.err(), server.err()].into_iter().flatten() {
        assert!(refused.len() < 200 && !refused.contains('\n'), "{refused}");
    }
}

/// The length that the first element has by its own word.
fn length(data: &[u8]) -> usize {
    match data[1] {
        short @ 0..=0x7f => usize::from(short),
        long => {
            let bytes = &data[2..2 + usize::from(long & 0x7f)];
            bytes
                .iter()
                .fold(0, |len, byte| (len << 8) | usize::from(*byte))
        }
    }
}
