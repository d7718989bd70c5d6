//! `podling explain`: whether a workspace counts as in use, and how we know.

use std::time::{Duration, SystemTime};

use clap::Args;
use podling_proto::{
    agent::v1::{ActivityState, Evidence, GetActivityRequest, Lease, Verdict},
    control::v1::{Link, State, Workspace},
};
use serde::Serialize;
use tokio::time::timeout;

use super::ls::ago;
use crate::{
    client::Client,
    context::Context,
    duration::{self, from_wire, show},
    failure::Failure,
    output::{self, Tone, paint, plain, table},
    view::{ActivityView, WorkspaceView, link, state, state_tone, verdict},
};

/// How long the agent may take to answer before its last heartbeat has to do.
const AGENT_TIMEOUT: Duration = Duration::from_secs(3);

/// Say whether a workspace counts as in use, and how we know
#[derive(Debug, Args)]
pub struct Explain {
    /// The workspace's name or id.
    name: String,
}

#[derive(Debug, Serialize)]
struct Explanation {
    #[serde(flatten)]
    workspace: WorkspaceView,
    /// From the agent itself, just now, rather than from its last heartbeat.
    fresh: bool,
    activity: Option<ActivityView>,
}

impl Explain {
    /// Says it.
    pub async fn run(self, context: &Context) -> Result<u8, Failure> {
        let client = context.client().await?;
        let mut workspace = client.find(&self.name).await?;
        let fresh = ask(&client, &workspace).await;
        let is_fresh = fresh.is_some();
        if let Some(activity) = fresh {
            workspace.activity = Some(activity);
        }
        if context.json() {
            let activity = workspace.activity.as_ref().map(ActivityView::from);
            let mut view = WorkspaceView::from(&workspace);
            if is_fresh {
                view.verdict = activity.as_ref().map(|activity| activity.verdict);
            }
            output::json(&Explanation { workspace: view, fresh: is_fresh, activity })?;
        } else {
            output::print(&render(&workspace, is_fresh, SystemTime::now()))?;
        }
        Ok(0)
    }
}

/// The activity from the agent itself; looking never wakes anything.
async fn ask(client: &Client, workspace: &Workspace) -> Option<ActivityState> {
    if workspace.state() != State::Awake {
        return None;
    }
    let mut activity = client.inside_of(workspace).activity();
    timeout(AGENT_TIMEOUT, activity.get(GetActivityRequest {})).await.ok()?.ok()?.into_inner().activity
}

fn render(workspace: &Workspace, fresh: bool, now: SystemTime) -> String {
    let name = paint(&workspace.name, Tone::Strong);
    let word = state(workspace.state());
    let word = state_tone(workspace.state()).map_or(word.into(), |tone| paint(word, tone));
    let mut text = format!("{name} ({}) is {word} since {}", workspace.id, ago(workspace.since, now));
    if !workspace.reason.is_empty() {
        text.push_str(&format!(": {}", plain(&workspace.reason)));
    }
    text.push('\n');
    if workspace.link() != Link::Connected && workspace.state() == State::Awake {
        text.push_str(&format!(
            "The link to its agent is {}: nothing is known and nothing is concluded; its idle time stands still.\n",
            link(workspace.link())
        ));
    }
    if workspace.restarts > 0 {
        text.push_str(&format!(
            "Its agent was started again {} times since it was healthy.\n",
            workspace.restarts
        ));
    }
    match &workspace.activity {
        Some(activity) => text.push_str(&render_activity(activity, fresh, now)),
        None => text.push_str("Nothing is known of its activity.\n"),
    }
    if let Some(at) = workspace.next_transition {
        let left =
            SystemTime::try_from(at).ok().and_then(|at| at.duration_since(now).ok()).unwrap_or_default();
        let why = plain(&workspace.next_transition_reason);
        text.push_str(&format!("The control plane looks again in {}: {why}\n", show(left)));
    }
    text
}

fn render_activity(activity: &ActivityState, fresh: bool, now: SystemTime) -> String {
    let (word, tone) = match verdict(activity.verdict()) {
        Some(word @ "idle") => (word, Tone::Faint),
        Some(word) => (word, Tone::Good),
        None => ("unknown", Tone::Notice),
    };
    let mut text = format!("\nIt counts as {}", paint(word, tone));
    if !fresh {
        text.push_str(&format!(" (by its heartbeat {} ago)", ago(activity.at, now)));
    }
    let rows: Vec<_> = activity.evidence.iter().map(row).collect();
    if rows.is_empty() {
        text.push_str(": nobody types and nothing runs.\n");
    } else {
        text.push_str(", because:\n\n");
        for line in table(&["WHAT", "SEEN", "HOLDS FOR"], &rows).lines() {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text.push('\n');
    text.push_str(&render_idle(activity));
    activity.leases.iter().for_each(|lease| text.push_str(&render_lease(lease)));
    if let Some(usage) = activity.usage {
        text.push_str(&format!(
            "It uses {:.2} cores and {} of memory, with {} processes and {} terminals.\n",
            usage.cpu_cores,
            indicatif::HumanBytes(usage.memory_bytes),
            usage.processes,
            usage.terminals
        ));
    }
    text
}

fn row(evidence: &Evidence) -> Vec<(String, Option<Tone>)> {
    let seen = from_wire(evidence.age).unwrap_or_default();
    let seen = if seen < Duration::from_secs(1) { "now".to_owned() } else { format!("{} ago", show(seen)) };
    let holds = match from_wire(evidence.holds_for).unwrap_or_default() {
        _ if evidence.capped => "no longer counts: its cap is over".to_owned(),
        Duration::ZERO => "as long as it is there".to_owned(),
        left => show(left),
    };
    let tone = evidence.capped.then_some(Tone::Faint);
    vec![(plain(&evidence.detail), tone), (seen, tone), (holds, tone)]
}

fn render_idle(activity: &ActivityState) -> String {
    let counted = from_wire(activity.counted_idle).unwrap_or_default();
    let wanted = from_wire(activity.idle_timeout).unwrap_or_default();
    match activity.verdict() {
        Verdict::Idle => format!(
            "{} of idle time count so far; it may sleep after {} (if nothing happens, in {}).\n",
            show(counted),
            show(wanted),
            show(wanted.saturating_sub(counted))
        ),
        _ => format!(
            "Idle time begins to count when none of this holds; it may sleep after {} of it.\n",
            show(wanted)
        ),
    }
}

fn render_lease(lease: &Lease) -> String {
    let left = duration::show(from_wire(lease.remaining).unwrap_or_default());
    let why = if lease.reason.is_empty() { String::new() } else { format!(" ({})", plain(&lease.reason)) };
    format!("It is kept awake by {:?}{why} for another {left}.\n", plain(&lease.name))
}

#[cfg(test)]
mod tests {
    use podling_proto::agent::v1::Signal;

    use super::*;

    fn wire(seconds: u64) -> Option<prost_types::Duration> {
        Some(duration::to_wire(Duration::from_secs(seconds)))
    }

    fn workspace() -> Workspace {
        let mut workspace =
            Workspace { name: "demo".to_owned(), id: "abcdefghijkl".to_owned(), ..Workspace::default() };
        workspace.set_state(State::Awake);
        workspace.set_link(Link::Connected);
        workspace
    }

    #[test]
    fn a_person_reads_why_it_is_busy_and_what_no_longer_counts() {
        let evidence = |signal: Signal, detail: &str, capped| Evidence {
            signal: signal.into(),
            detail: detail.to_owned(),
            age: wire(3),
            holds_for: wire(3_600),
            capped,
        };
        let activity = ActivityState {
            verdict: Verdict::Busy.into(),
            evidence: vec![
                evidence(Signal::Cpu, "python3 (pid 4711) uses 97 % of a core", false),
                evidence(Signal::ForegroundJob, "vim in terminal 'main'", true),
            ],
            idle_timeout: wire(900),
            ..ActivityState::default()
        };
        let text = render(&Workspace { activity: Some(activity), ..workspace() }, true, SystemTime::now());
        for words in [
            "demo (abcdefghijkl) is awake",
            "counts as busy",
            "97 % of a core",
            "3s ago",
            "1h",
            "its cap is over",
            "after 15m",
        ] {
            assert!(text.contains(words), "{words:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_person_reads_how_long_an_idle_one_has_left() {
        let activity = ActivityState {
            verdict: Verdict::Idle.into(),
            counted_idle: wire(60),
            idle_timeout: wire(900),
            ..ActivityState::default()
        };
        let text = render(&Workspace { activity: Some(activity), ..workspace() }, true, SystemTime::now());
        assert!(text.contains("1m of idle time count so far") && text.contains("in 14m"), "{text}");
    }

    #[test]
    fn nothing_is_concluded_from_silence() {
        let mut silent = workspace();
        silent.set_link(Link::Unknown);
        let text = render(&silent, false, SystemTime::now());
        assert!(text.contains("nothing is concluded") && !text.contains("idle:"), "{text}");
    }
}
