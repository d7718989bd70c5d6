//! `podling rm`: deletes a workspace, once somebody has agreed to what is lost.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use clap::Args;
use podling_proto::{
    control::v1::{DeleteWorkspaceRequest, Workspace},
    error::{self, Reason},
};
use serde::Serialize;

use crate::{
    backoff::patiently,
    client::Client,
    context::Context,
    failure::Failure,
    follow::{Change, Follow},
    output,
};

/// Delete workspaces and all that is in them
#[derive(Debug, Args)]
pub struct Rm {
    /// Names or ids.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Agree that their files are lost for good; needed where nobody can be asked.
    #[arg(long)]
    discard: bool,
    /// Do not ask on a terminal.
    #[arg(short, long)]
    yes: bool,
    /// Do not wait until they are gone.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Serialize)]
struct Removed {
    name: String,
    id: String,
}

impl Rm {
    /// Deletes them.
    pub async fn run(self, context: &Context) -> Result<u8, Failure> {
        let client = context.client().await?;
        let mut found = Vec::new();
        for name in &self.names {
            found.push(client.find(name).await?);
        }
        if !self.agreed(&found)? {
            return Err(Failure::Refused("nothing was deleted".to_owned()));
        }
        let mut removed = Vec::new();
        for workspace in found {
            self.remove(&client, &workspace).await?;
            if !context.json() {
                let done = if self.no_wait { "is being deleted" } else { "is deleted" };
                output::line(&format!("{} {done}", workspace.name))?;
            }
            removed.push(Removed { name: workspace.name, id: workspace.id });
        }
        if context.json() {
            output::json(&removed)?;
        }
        Ok(0)
    }

    /// Whether somebody agrees to the loss: on a terminal by saying so, elsewhere by --discard.
    fn agreed(&self, workspaces: &[Workspace]) -> Result<bool, Failure> {
        let asked = io::stdin().is_terminal();
        if self.discard && !asked {
            return Ok(true);
        }
        for workspace in workspaces {
            eprintln!("{}", loss(workspace));
        }
        if asked && self.yes {
            return Ok(true);
        }
        if !asked {
            let names = self.names.join(" ");
            let advice =
                format!("their files would be lost for good; to agree: podling rm {names} --discard");
            return Err(Failure::Refused(advice));
        }
        eprint!("Delete? [y/N] ");
        let asking = || Failure::io("cannot ask");
        io::stderr().flush().map_err(asking())?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map_err(asking())?;
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }

    async fn remove(&self, client: &Client, workspace: &Workspace) -> Result<(), Failure> {
        let request = DeleteWorkspaceRequest { workspace: workspace.id.clone(), discard: true };
        let deleted = patiently(|| {
            let (mut workspaces, request) = (client.workspaces(), request.clone());
            async move { workspaces.delete(request).await }
        });
        match deleted.await {
            // It was there a moment ago: an earlier try got through before its link broke.
            Err(status) if error::reason(&status) == Some(Reason::WorkspaceNotFound) => return Ok(()),
            answer => answer?,
        };
        if self.no_wait {
            return Ok(());
        }
        let spinner = output::spinner(format!("deleting {}", workspace.name));
        let mut changes = Follow::new(client.clone(), workspace.id.clone());
        while let Change::Now(now) = changes.next().await? {
            spinner.set_message(output::plain(&format!("deleting {} {}", now.name, now.reason)));
        }
        spinner.finish_and_clear();
        Ok(())
    }
}

/// What goes with it.
fn loss(workspace: &Workspace) -> String {
    let usage = workspace.activity.as_ref().and_then(|activity| activity.usage).unwrap_or_default();
    let mut lost = format!("{}: all of its files are lost for good", workspace.name);
    let count = |count: u32, one: &str, many: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        n => Some(format!("{n} {many}")),
    };
    let ended: Vec<_> =
        [count(usage.terminals, "terminal", "terminals"), count(usage.processes, "process", "processes")]
            .into_iter()
            .flatten()
            .collect();
    if !ended.is_empty() {
        lost.push_str(&format!("; {} end", ended.join(" and ")));
    }
    lost
}

#[cfg(test)]
mod tests {
    use podling_proto::agent::v1::{ActivityState, Usage};

    use super::*;

    #[test]
    fn it_says_what_is_lost() {
        let mut workspace = Workspace { name: "demo".to_owned(), ..Workspace::default() };
        assert_eq!(loss(&workspace), "demo: all of its files are lost for good");
        let usage = Usage { terminals: 1, processes: 3, ..Usage::default() };
        workspace.activity = Some(ActivityState { usage: Some(usage), ..ActivityState::default() });
        assert_eq!(
            loss(&workspace),
            "demo: all of its files are lost for good; 1 terminal and 3 processes end"
        );
    }
}
