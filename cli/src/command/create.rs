//! `podling create`: makes a workspace and waits until it can be used.

use std::time::{Duration, Instant};

use clap::Args;
use podling_proto::{
    control::v1::{CreateWorkspaceRequest, Policy, State, Workspace},
    token,
};

use super::run::environment;
use crate::{
    backoff::patiently,
    client::Client,
    context::Context,
    duration,
    failure::Failure,
    follow::{Change, Follow},
    output,
    view::{WorkspaceView, state},
};

/// Random bytes of a request id.
const REQUEST_ID_BYTES: usize = 12;

/// Make a workspace and wait until it is awake
#[derive(Debug, Args)]
pub struct Create {
    /// Its name: 1 to 63 of a-z, 0-9 and "-", beginning with a letter.
    name: String,
    /// What to make it from; the default is the control plane's.
    #[arg(short, long, default_value = "", hide_default_value = true)]
    template: String,
    /// Idle time before it may sleep, for example 15m.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    idle_timeout: Option<Duration>,
    /// How long running work keeps it awake after the last sign of a person.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    work_cap: Option<Duration>,
    /// How long a program in the foreground keeps it awake after the last sign of a person.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    presence_cap: Option<Duration>,
    /// Add to its environment; without a value, pass on the one here.
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// If there is one of this name already, use it.
    #[arg(long)]
    reconnect: bool,
    /// Do not wait until it is awake.
    #[arg(long)]
    no_wait: bool,
    /// Whose it is (needs a token with `admin`).
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
}

impl Create {
    /// Makes it.
    pub async fn run(self, context: &Context) -> Result<u8, Failure> {
        let begun = Instant::now();
        let client = context.client().await?;
        let wait = !self.no_wait;
        let request = self.request();
        let answer = patiently(|| {
            let (mut workspaces, request) = (client.workspaces(), request.clone());
            async move { workspaces.create(request).await }
        })
        .await?;
        let created = answer.created;
        let workspace =
            answer.workspace.ok_or_else(|| Failure::Other("the answer holds no workspace".to_owned()))?;
        let workspace = if wait { until_awake(&client, workspace).await? } else { workspace };
        if context.json() {
            output::json(&WorkspaceView::from(&workspace))?;
        } else {
            let made = if created { "" } else { " (it was there already)" };
            let took = duration::show(begun.elapsed());
            let Workspace { name, .. } = &workspace;
            output::line(&format!("{name} is {}{made}, after {took}", state(workspace.state())))?;
            output::line(&format!("  open a terminal in it:  podling attach {name}"))?;
        }
        Ok(0)
    }

    fn request(self) -> CreateWorkspaceRequest {
        CreateWorkspaceRequest {
            env: environment(&self.env),
            policy: Some(Policy {
                idle_timeout: self.idle_timeout.map(duration::to_wire),
                work_cap: self.work_cap.map(duration::to_wire),
                presence_cap: self.presence_cap.map(duration::to_wire),
                ..Policy::default()
            }),
            name: self.name,
            template: self.template,
            request_id: token::random(REQUEST_ID_BYTES),
            reconnect: self.reconnect,
            owner: self.owner,
        }
    }
}

/// Waits until a workspace is awake; one that fails says why.
pub async fn until_awake(client: &Client, workspace: Workspace) -> Result<Workspace, Failure> {
    let spinner = output::spinner(format!("{} is {}", workspace.name, state(workspace.state())));
    let mut changes = Follow::new(client.clone(), workspace.id.clone());
    let outcome = loop {
        match changes.next().await? {
            Change::Gone => {
                break Err(Failure::NotFound(format!("{} was deleted meanwhile", workspace.name)));
            }
            Change::Now(now) => match now.state() {
                State::Awake => break Ok(*now),
                State::Failed => {
                    let why = format!("{} failed to start: {}", now.name, output::plain(&now.reason));
                    break Err(Failure::Other(why));
                }
                State::Deleting => break Err(Failure::Other(format!("{} is being deleted", now.name))),
                other => {
                    let why = if now.reason.is_empty() { String::new() } else { format!(": {}", now.reason) };
                    spinner.set_message(output::plain(&format!("{} is {}{why}", now.name, state(other))));
                }
            },
        }
    };
    spinner.finish_and_clear();
    outcome
}
