//! `podling attach`: shows a terminal of a workspace on the local terminal.
//!
//! [`session`] keeps the terminal attached across broken connections. Its parts:
//!
//! - [`connection`] opens the streams to the agent.
//! - [`keyboard`] separates keystrokes from replies of the terminal emulator.
//! - [`outbox`] queues input until the agent acknowledges it.
//! - [`screen`] queues output on its way to the screen, and restores the local terminal at the end.
//! - [`modes`] tracks what the output changes in the local terminal.
//! - [`notifications`] has the sleep warnings and the progress of a wake.

pub mod connection;
pub mod keyboard;
pub mod modes;
pub mod notifications;
pub mod outbox;
pub mod screen;
pub mod session;

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _},
};

use clap::Args;
use podling_proto::{
    agent::v1::{
        AttachOpen, AttachRequest, CreateTerminalRequest, Exit, ListTerminalsRequest, Terminal,
        attach_request::Request, exit::How,
    },
    control::v1::Workspace,
    error::{self, Reason},
};
use tonic::Status;

use self::{
    keyboard::{DEFAULT_DETACH_KEY, DetachKey},
    session::{AttachEnd, AttachSession},
};
use super::lifecycle::wake;
use crate::{
    advice,
    backoff::{is_retryable, retry_call},
    client::{Client, Context, WorkspaceClient, request_id},
    failure::{self, CommandFailure},
    notice, output,
    signal::{self, TerminationSignals},
    spinner::WakeSpinner,
    state_waiter::{self, TargetState},
};

/// Name of the terminal that is opened if no name is given.
const DEFAULT_TERMINAL: &str = "main";
/// Environment variables that describe the local terminal to remote programs.
const TERMINAL_VARIABLES: &[&str] = &["TERM", "COLORTERM", "LANG"];

const EXAMPLES: &str = "\
Examples:
  podling attach demo
  podling attach demo build --new -- make -j8";

/// Open a terminal in a workspace
///
/// The terminal and its programs keep running when you detach or when the connection breaks. A
/// broken connection is reopened. Output continues at the byte where it stopped, if the agent still
/// holds that byte.
///
/// A sleeping workspace is woken. If the workspace falls asleep while you are attached, press a key
/// to wake it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AttachArgs {
    /// Name or id of the workspace
    name: String,
    /// Name or id of the terminal [default: main, created if it does not exist]
    terminal: Option<String>,
    /// Create a new terminal, named TERMINAL if that is given
    #[arg(long)]
    new: bool,
    /// Key that detaches, written as ctrl-CHARACTER or ^CHARACTER; "none" for no key
    #[arg(long, value_name = "KEY", default_value = DEFAULT_DETACH_KEY)]
    detach_key: DetachKey,
    /// Program to run in the new terminal instead of the shell
    #[arg(last = true, value_name = "CMD", requires = "new")]
    command: Vec<String>,
}

impl AttachArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        if !io::stdin().is_terminal() {
            let run = advice::command(format_args!("run {} -- CMD", self.name));
            let message = format!("standard input is not a terminal; in scripts, use: {run}");
            return Err(CommandFailure::Usage(message));
        }
        let signals = TerminationSignals::listen()?;
        let client = context.client().await?;
        let workspace = client.find(&self.name).await?;
        let (terminal, is_new) = self.terminal(&client, &workspace).await?;
        if is_inside(&workspace.id, &terminal.id) {
            return Err(CommandFailure::Refused(inside_message(&workspace.name, &terminal.name)));
        }
        let terminal_label = if terminal.name.is_empty() { &terminal.id } else { &terminal.name };
        let terminal_label = output::plain(terminal_label);
        notice!("attached to {terminal_label} in {}; detach with {}", self.name, self.detach_key);
        if let Some(failure) = workspace.activity.as_ref().and_then(notifications::command_failure) {
            let explain = advice::command(format_args!("explain {}", self.name));
            notice!("{failure}; its last output: {explain}");
        }
        let session = AttachSession::new(client, workspace, terminal.id.clone(), is_new, self.detach_key)?;
        // The session has restored the terminal, but the cursor may be in the middle of a line.
        let end = session.run(signals).await.inspect_err(|_| notice!(""))?;
        Ok(match end {
            AttachEnd::Exited(exit) => {
                notice!("\r\n{terminal_label} in {} {}", self.name, describe_exit(&exit));
                exit_code(&exit)
            }
            AttachEnd::Detached { unsent } => {
                if unsent > 0 {
                    notice!("\r\nthe connection was broken: the last {unsent} bytes typed may be lost");
                }
                let argument = if terminal_label == DEFAULT_TERMINAL {
                    String::new()
                } else {
                    format!(" {}", terminal.id)
                };
                let attach = advice::command(format_args!("attach {}{argument}", self.name));
                notice!("\r\ndetached; the terminal keeps running. Attach again with: {attach}");
                failure::OK
            }
            AttachEnd::LeftAsleep => {
                let attach = advice::command(format_args!("attach {}", self.name));
                notice!("\r\ndetached; {} is asleep. Wake it and attach again with: {attach}", self.name);
                failure::OK
            }
            AttachEnd::Signal(name) => signal::exit_code(name),
        })
    }

    /// Returns the selected terminal, and whether it was created.
    async fn terminal(
        &self,
        client: &Client,
        workspace: &Workspace,
    ) -> Result<(Terminal, bool), CommandFailure> {
        let workspace_client = client.workspace_client_for(workspace);
        if self.new {
            let name = self.terminal.as_deref().unwrap_or_default();
            let wake_spinner = WakeSpinner::new(client.clone(), workspace.id.clone());
            return Ok((wake_spinner.show_during(self.create(&workspace_client, name)).await?, true));
        }
        let terminals = match list(&workspace_client).await {
            // The terminals return when the workspace wakes, but listing them does not wake it.
            Err(status) if is_asleep_refusal(&status) => {
                wake_and_wait(client, workspace).await?;
                list(&workspace_client).await?
            }
            answer => answer?,
        };
        match (find_terminal(&terminals, self.terminal.as_deref()), &self.terminal) {
            (Some(terminal), _) => Ok((terminal.clone(), false)),
            (None, None) => Ok((self.create(&workspace_client, DEFAULT_TERMINAL).await?, true)),
            (None, Some(selector)) => {
                Err(CommandFailure::NotFound(missing_terminal_message(&self.name, selector, &terminals)))
            }
        }
    }

    async fn create(
        &self,
        workspace_client: &WorkspaceClient,
        name: &str,
    ) -> Result<Terminal, CommandFailure> {
        let env: HashMap<_, _> = TERMINAL_VARIABLES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
            .collect();
        let request = CreateTerminalRequest {
            argv: self.command.clone(),
            env,
            size: screen::size(),
            name: name.to_owned(),
            request_id: request_id(),
            ..CreateTerminalRequest::default()
        };
        let answer = retry_call(async || workspace_client.terminals().create(request.clone()).await);
        answer
            .await?
            .terminal
            .ok_or_else(|| CommandFailure::Other("the response of the agent contains no terminal".to_owned()))
    }
}

/// Returns whether this program runs in the terminal. Attaching would show the terminal in itself:
/// each byte of output would be output of the terminal again, without end.
fn is_inside(workspace_id: &str, terminal_id: &str) -> bool {
    let is = |name, value: &str| std::env::var(name).is_ok_and(|inside| inside == value);
    is("PODLING_WORKSPACE_ID", workspace_id) && is("PODLING_TERMINAL_ID", terminal_id)
}

fn inside_message(workspace: &str, terminal: &str) -> String {
    let terminal = output::plain(terminal);
    format!(
        "cannot attach to {terminal} in {workspace} from inside it, because it would show its own output \
         without end; to open another terminal: {}",
        advice::command(format_args!("attach {workspace} --new"))
    )
}

async fn list(workspace_client: &WorkspaceClient) -> Result<Vec<Terminal>, Status> {
    let answer = retry_call(async || workspace_client.terminals().list(ListTerminalsRequest {}).await);
    Ok(answer.await?.terminals)
}

/// Wakes the workspace, and shows its progress until it is awake. A token without the verb
/// `lifecycle` may wake a workspace only by attaching. For such a token, the function attaches to a
/// terminal that does not exist, which wakes the workspace before it fails.
async fn wake_and_wait(client: &Client, workspace: &Workspace) -> Result<(), CommandFailure> {
    match wake(client, &workspace.id).await {
        Err(failure) if failure.reason() == Some(Reason::VerbMissing) => {
            let open = AttachRequest { request: Some(Request::Open(AttachOpen::default())) };
            let mut terminals = client.workspace_client_for(workspace).terminals();
            let wake_spinner = WakeSpinner::new(client.clone(), workspace.id.clone());
            match wake_spinner.show_during(terminals.attach(tokio_stream::once(open))).await {
                Err(status) if is_asleep_refusal(&status) || is_retryable(&status) => Err(status.into()),
                _ => Ok(()),
            }
        }
        woken => state_waiter::wait_for(client, woken?, TargetState::Awake).await.map(|_| ()),
    }
}

/// Returns whether the call failed because the workspace is not awake or failed to start.
fn is_asleep_refusal(status: &Status) -> bool {
    matches!(error::reason(status), Some(Reason::NotAwake | Reason::WorkspaceFailed))
}

/// Selects a terminal by its id, or else by its name. Of several terminals with the name, prefers
/// running ones, and then the newest. Without a selector, selects the running terminal `main`, or
/// else the newest running terminal.
fn find_terminal<'a>(terminals: &'a [Terminal], selector: Option<&str>) -> Option<&'a Terminal> {
    let running = || terminals.iter().rev().filter(|terminal| terminal.exit.is_none());
    match selector {
        Some(selector) => terminals
            .iter()
            .find(|terminal| terminal.id == selector)
            .or_else(|| running().find(|terminal| terminal.name == selector))
            .or_else(|| terminals.iter().rev().find(|terminal| terminal.name == selector)),
        None => running().find(|terminal| terminal.name == DEFAULT_TERMINAL).or_else(|| running().next()),
    }
}

fn missing_terminal_message(workspace: &str, selector: &str, terminals: &[Terminal]) -> String {
    let names: Vec<_> =
        terminals.iter().filter(|t| t.exit.is_none()).map(|t| output::plain(&t.name)).collect();
    let running = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    format!(
        "workspace {workspace} has no terminal {selector:?} (running: {running}); \
         create it with: {}",
        advice::command(format_args!("attach {workspace} {selector} --new"))
    )
}

fn describe_exit(exit: &Exit) -> String {
    let background = if exit.held_by_background { "; background processes of it still run" } else { "" };
    match &exit.how {
        Some(How::Code(0)) => format!("exited{background}"),
        Some(How::Code(code)) => format!("exited with code {code}{background}"),
        Some(How::Signal(name)) => format!("was ended by SIG{name}{background}"),
        None => format!("ended with unknown status{background}"),
    }
}

fn exit_code(exit: &Exit) -> u8 {
    match &exit.how {
        Some(How::Code(code)) => u8::try_from(*code).unwrap_or(failure::ERROR),
        Some(How::Signal(name)) => signal::exit_code(name),
        None => failure::ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terminal(id: &str, name: &str, ended: bool) -> Terminal {
        let exit = ended.then(|| Exit { how: Some(How::Code(0)), ..Exit::default() });
        Terminal { id: id.to_owned(), name: name.to_owned(), exit, ..Terminal::default() }
    }

    #[test]
    fn terminal_is_selected_by_id_name_or_default() {
        let terminals = [
            terminal("t1", "main", true),
            terminal("t2", "main", false),
            terminal("t3", "build", false),
            terminal("t4", "old", true),
        ];
        let id = |selector| find_terminal(&terminals, selector).map(|t| t.id.as_str());
        assert_eq!(id(None), Some("t2"), "the running terminal");
        assert_eq!(id(Some("build")), Some("t3"));
        assert_eq!(id(Some("t1")), Some("t1"), "an exited terminal can be selected by id");
        assert_eq!(id(Some("old")), Some("t4"));
        assert_eq!(id(Some("nope")), None);
        assert_eq!(find_terminal(&terminals[2..], None).map(|t| t.id.as_str()), Some("t3"));
        assert_eq!(find_terminal(&terminals[3..], None), None, "an exited terminal is not a default");
    }

    #[test]
    fn only_asleep_and_failed_reasons_trigger_wake() {
        let of = |reason| Status::from(error::WireError::new(reason, "no"));
        assert!(is_asleep_refusal(&of(Reason::NotAwake)) && is_asleep_refusal(&of(Reason::WorkspaceFailed)));
        for reason in [Reason::Deleting, Reason::AgentUnreachable, Reason::VerbMissing] {
            assert!(!is_asleep_refusal(&of(reason)), "{reason:?} must not wake the workspace");
        }
    }

    #[test]
    fn shell_exit_maps_to_message_and_code() {
        let exit = |how| Exit { how: Some(how), ..Exit::default() };
        assert_eq!(exit_code(&exit(How::Code(3))), 3);
        assert_eq!(exit_code(&exit(How::Signal("HUP".to_owned()))), 129);
        assert_eq!(describe_exit(&exit(How::Signal("KILL".to_owned()))), "was ended by SIGKILL");
    }
}
