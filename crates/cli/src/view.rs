//! Commands that show what the admin API tells.

use serde_json::Value;

use crate::admin::{Access, Admin};
use crate::failure::Failure;
use crate::runtime::block_on;
use crate::screen::{How, Screen};

/// Whom to ask, and how to show the answer
#[derive(Debug, clap::Args)]
pub(crate) struct View {
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    how: How,
}

impl View {
    /// Shows what `fetch` gets, as [`Screen::show`] does; returns what was shown.
    ///
    /// # Errors
    /// The hub cannot be asked, or says no.
    pub(crate) fn show(
        &self,
        fetch: impl AsyncFn(&Admin) -> anyhow::Result<Value>,
        describe: impl Fn(&Value, &Screen, Option<usize>) -> String,
    ) -> Result<Value, Failure> {
        let admin = Admin::new(&self.access)?;
        let look = async || fetch(&admin).await;
        Ok(block_on(Screen::new().show(self.how, look, describe))??)
    }
}
