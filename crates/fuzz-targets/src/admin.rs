//! The admin API: what is asked of it, and what other hubs tell it.

use nowconnect_hub::fuzzing::admin;

/// A path and its query: what is taken asks another hub for the same.
pub fn request(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    match admin::request(path, query) {
        None => {}
        Some(Ok((limit, passed_on))) => {
            assert!(path.starts_with("/api/v1/") && (1..=1000).contains(&limit));
            let again = admin::request(path, &passed_on).expect("the same path");
            assert_eq!(again, Ok((limit, passed_on)));
        }
        Some(Err(problem)) => assert!(problem.len() < 300),
    }
}

/// Every line is what one hub answered: nothing in it breaks what is made of them all, in which no
/// list is longer than was asked for.
pub fn answers(data: &[u8]) {
    let said: Vec<&[u8]> = data.split(|byte| *byte == b'\n').take(8).collect();
    let merged = admin::merged(&said);
    for list in ["agents", "flows", "events"] {
        assert!(merged[list][list].as_array().expect("a list").len() <= 100);
    }
}
