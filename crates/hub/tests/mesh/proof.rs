//! Who may join.

use nowconnect_testkit::authority::Authority;

use crate::member::{both_linked, pair, with_mtls, with_tls};

#[tokio::test]
async fn tls_that_ends_in_the_hub_proves_both() {
    let authority = Authority::new("mesh").unwrap();
    let (a, b) = pair(|config, name| {
        with_mtls(config, &authority, name);
        with_tls(config, &authority, name);
    })
    .await;
    both_linked(&a, &b).await;
}

#[tokio::test]
async fn without_tls_on_the_way_it_runs_inside_the_websocket() {
    let authority = Authority::new("mesh").unwrap();
    let (a, b) = pair(|config, name| with_mtls(config, &authority, name)).await;
    both_linked(&a, &b).await;
}
