//! A tunnel takes the place of a living one.

use std::sync::Arc;

use nowconnect_proto::backoff::Backoff;

use crate::round;
use crate::surroundings::{BACKOFF_BASE, BACKOFF_MAX, Scope, Surroundings};
use crate::tunnel::Tunnel;

/// Makes the tunnel that takes the place of `tunnel`, once that is outdated, its proof key is another
/// one, or its hub is configured no longer. One keeper after another does so: there is always a tunnel that takes flows.
pub(crate) fn renewal(
    around: &Surroundings,
    scope: &Scope,
    tunnel: &Tunnel,
) -> impl Future<Output = Tunnel> + Send + use<> {
    let (outdated, url) = (tunnel.stand.outdated(), tunnel.url.uri().clone());
    let (scope, tunnels) = (scope.clone(), Arc::clone(&around.tunnels));
    let (mut config, rekeyed) = (around.config.clone(), Arc::clone(&tunnel.rekeyed));
    async move {
        let removed = config.wait_for(|config| !scope.urls(config).contains(&url));
        tokio::select! {
            () = outdated => {}
            () = rekeyed.notified() => {}
            Ok(_) = removed => {}
        }
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
        loop {
            let turn = tunnels.standing.turn().await;
            let current = Arc::clone(&config.borrow());
            match round::run(&tunnels, &current, &scope.urls(&current), 0).await {
                Ok(won) => return won.tunnel,
                Err(retry_after) => backoff.note_retry_after(retry_after),
            }
            drop(turn);
            tokio::time::sleep(backoff.next(rand::random())).await;
        }
    }
}
