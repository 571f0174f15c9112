//! Which hubs a tunnel is kept to, as the configuration wants it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_settings::Watcher;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{AgentConfig, TunnelConfig, TunnelMode};
use crate::keeper::Keeper;
use crate::surroundings::{Scope, Surroundings};

/// How often the files of token and proof key are looked at.
const TOKEN_PERIOD: Duration = Duration::from_secs(1);

/// The task that starts keepers and sends them off, and tells all of them of a new token.
#[derive(Debug)]
pub(crate) struct Fleet {
    around: Surroundings,
    keepers: Vec<(Scope, CancellationToken)>,
    files: Watcher,
    token: watch::Sender<()>,
}

impl Fleet {
    pub(crate) fn new(around: Surroundings) -> Self {
        let files = files(&around.config.borrow().tunnel);
        Self {
            around,
            keepers: Vec::new(),
            files: Watcher::new(files, TOKEN_PERIOD),
            token: watch::Sender::new(()),
        }
    }

    /// Runs until the agent stops.
    pub(crate) async fn run(mut self) {
        let stop = self.around.tasks.token();
        self.arrange();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = self.around.config.changed() => self.arrange(),
                _ = self.files.changed() => {
                    tracing::info!(event = "token_file_changed");
                    self.token.send_replace(());
                }
            }
        }
    }

    /// Looks after exactly the hubs that the configuration names.
    fn arrange(&mut self) {
        let config: Arc<AgentConfig> = Arc::clone(&self.around.config.borrow_and_update());
        self.files.watch(files(&config.tunnel));
        let wanted = scopes(&config.tunnel);
        self.keepers.retain(|(scope, retire)| {
            let stays = wanted.contains(scope);
            if !stays {
                retire.cancel();
            }
            stays
        });
        for scope in wanted {
            if !self.keepers.iter().any(|(kept, _)| *kept == scope) {
                let retire = self.around.tasks.token();
                let token = self.token.subscribe();
                let keeper = Keeper::new(self.around.clone(), scope.clone(), token, retire.clone());
                self.around.tasks.spawn("keeper", keeper.run());
                self.keepers.push((scope, retire));
            }
        }
    }
}

fn files(tunnel: &TunnelConfig) -> Vec<PathBuf> {
    let key = tunnel.dpop_key_file.iter();
    key.chain([&tunnel.token_file]).cloned().collect()
}

fn scopes(tunnel: &TunnelConfig) -> Vec<Scope> {
    match tunnel.mode {
        TunnelMode::First => vec![Scope::Any],
        TunnelMode::All => tunnel.urls.iter().cloned().map(Scope::Only).collect(),
    }
}
