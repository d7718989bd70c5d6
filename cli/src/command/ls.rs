//! `podling ls`: the workspaces there are.

use std::time::{Duration, SystemTime};

use clap::Args;
use podling_proto::control::v1::{Link, ListWorkspacesRequest, Workspace};

use crate::{
    backoff::patiently,
    context::Context,
    duration,
    failure::Failure,
    output::{self, Tone},
    view::{WorkspaceView, state, state_tone, verdict},
};

/// List the workspaces
#[derive(Debug, Args)]
pub struct Ls {
    /// Of all owners (needs a token with `admin`).
    #[arg(short, long)]
    all_owners: bool,
}

impl Ls {
    /// Lists them.
    pub async fn run(self, context: &Context) -> Result<u8, Failure> {
        let client = context.client().await?;
        let request = ListWorkspacesRequest { all_owners: self.all_owners };
        let answer = patiently(|| {
            let mut workspaces = client.workspaces();
            async move { workspaces.list(request).await }
        });
        let workspaces = answer.await?.workspaces;
        if context.json() {
            output::json(&workspaces.iter().map(WorkspaceView::from).collect::<Vec<_>>())?;
        } else if workspaces.is_empty() {
            eprintln!("There are no workspaces. Make one with: podling create NAME");
        } else {
            output::print(&render(&workspaces, SystemTime::now(), self.all_owners))?;
        }
        Ok(0)
    }
}

fn render(workspaces: &[Workspace], now: SystemTime, owners: bool) -> String {
    let mut head = vec!["NAME", "ID", "STATE", "VERDICT", "SINCE", "TEMPLATE"];
    if owners {
        head.push("OWNER");
    }
    head.push("");
    let row = |w: &Workspace| {
        let activity = w.activity.as_ref();
        // What was heard before the link went says nothing about now.
        let known = activity.filter(|_| w.link() == Link::Connected).and_then(|a| verdict(a.verdict()));
        let mut row = vec![
            (w.name.clone(), Some(Tone::Strong)),
            (w.id.clone(), None),
            (state(w.state()).to_owned(), state_tone(w.state())),
            (known.unwrap_or("-").to_owned(), None),
            (ago(w.since, now), None),
            (w.template.clone(), None),
        ];
        if owners {
            row.push((w.owner.clone(), None));
        }
        row.push((output::plain(&w.reason), Some(Tone::Faint)));
        row
    };
    output::table(&head, &workspaces.iter().map(row).collect::<Vec<_>>())
}

/// How long ago it was.
pub fn ago(at: Option<prost_types::Timestamp>, now: SystemTime) -> String {
    let elapsed = at.and_then(|at| SystemTime::try_from(at).ok()).map(|at| now.duration_since(at));
    match elapsed {
        Some(elapsed) => duration::show(Duration::from_secs(elapsed.unwrap_or_default().as_secs())),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::{
        agent::v1::{ActivityState, Verdict},
        control::v1::State,
    };

    use super::*;

    #[test]
    fn a_row_says_what_is_known_and_no_more() {
        let idle = ActivityState { verdict: Verdict::Idle.into(), ..ActivityState::default() };
        let mut workspace = Workspace {
            name: "demo".to_owned(),
            id: "abcdefghijkl".to_owned(),
            template: "shell".to_owned(),
            state: State::Awake.into(),
            link: Link::Connected.into(),
            since: Some(prost_types::Timestamp { seconds: 100, nanos: 0 }),
            activity: Some(idle),
            ..Workspace::default()
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(165);
        let text = render(std::slice::from_ref(&workspace), now, false);
        let row: Vec<_> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        assert_eq!(row, ["demo", "abcdefghijkl", "awake", "idle", "1m", "5s", "shell"]);
        workspace.set_link(Link::Unknown);
        assert!(!render(&[workspace], now, false).contains("idle"), "a silent agent is not idle");
    }
}
