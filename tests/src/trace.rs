//! Parses traces of the simulation, which `cargo xtask simulate --record SEED` writes
//! (`control/core/tests/simulation/record.rs`).
//!
//! ```text
//! # comment
//! > event
//! = NAME STATE…     a point of rest, with the observable state of a workspace that has changed
//! =                 a point of rest at which no workspace has changed
//! ```

use std::collections::BTreeMap;

/// A step of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceStep {
    /// An event to inject.
    Inject(TraceEvent),
    /// A point at which nothing changes any more, with the expected state of each workspace.
    Rest(BTreeMap<String, ObservedWorkspace>),
}

/// An event that a replay injects, or waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceEvent {
    /// Runs `podling up` with these arguments.
    Up(Vec<String>),
    /// Creates a workspace: name and owner.
    Create(String, String),
    /// Writes a file in a workspace: name and content.
    Write(String, String),
    /// Requests sleep even if the workspace is in use.
    Sleep(String),
    /// Requests wake of the workspace.
    Wake(String),
    /// Restores a deleted workspace.
    Restore(String),
    /// Deletes a workspace and keeps its archive.
    Delete(String),
    /// Deletes a workspace with all its archives.
    Discard(String),
    /// Changes a duration of a policy: workspace, field and value.
    Policy(String, String, String),
    /// Kills the workspace's agent with SIGKILL.
    KillAgent(String),
    /// Kills the control plane with SIGKILL.
    KillControl,
    /// Starts the control plane again. With a value, it dies at that failpoint: `ACTION:before` or
    /// `ACTION:after`.
    Restart(Option<String>),
    /// Waits until the control plane has crashed at this failpoint.
    Crashes(String),
    /// Makes the backup store unavailable.
    StoreAway,
    /// Makes the backup store available again.
    StoreBack,
    /// Waits until archiving or restoring the workspace has failed.
    Fails(String),
}

/// Observable state of a workspace, in the words of a trace. The default is a deleted workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedWorkspace(pub Vec<String>);

/// Parses a trace.
///
/// # Errors
///
/// Returns the first invalid line with its number.
pub fn parse(text: &str) -> Result<Vec<TraceStep>, String> {
    let mut steps = Vec::new();
    let mut now: BTreeMap<String, ObservedWorkspace> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = || format!("line {}: {line}", number + 1);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.split_first() {
            None => {}
            Some((&"#", _)) => {}
            Some((&">", words)) => steps.push(TraceStep::Inject(event(words).ok_or_else(wrong)?)),
            Some((&"=", words)) => {
                if let Some((name, words)) = words.split_first() {
                    now.insert((*name).to_owned(), ObservedWorkspace::of(words));
                }
                // Consecutive `=` lines belong to the same point of rest.
                if let Some(TraceStep::Rest(rest)) = steps.last_mut() {
                    rest.clone_from(&now);
                } else {
                    steps.push(TraceStep::Rest(now.clone()));
                }
            }
            Some(_) => return Err(wrong()),
        }
    }
    Ok(steps)
}

fn event(words: &[&str]) -> Option<TraceEvent> {
    let own = |word: &str| word.to_owned();
    Some(match *words {
        ["up", ref args @ ..] => TraceEvent::Up(args.iter().map(|arg| own(arg)).collect()),
        ["create", name, owner] => TraceEvent::Create(own(name), own(owner)),
        ["write", name, file] => TraceEvent::Write(own(name), own(file)),
        ["sleep", name] => TraceEvent::Sleep(own(name)),
        ["wake", name] => TraceEvent::Wake(own(name)),
        ["restore", name] => TraceEvent::Restore(own(name)),
        ["delete", name] => TraceEvent::Delete(own(name)),
        ["discard", name] => TraceEvent::Discard(own(name)),
        ["policy", name, which, time] => TraceEvent::Policy(own(name), own(which), own(time)),
        ["kill-agent", name] => TraceEvent::KillAgent(own(name)),
        ["kill-control"] => TraceEvent::KillControl,
        ["restart"] => TraceEvent::Restart(None),
        ["restart", failpoint] => TraceEvent::Restart(Some(own(failpoint))),
        ["crashes", failpoint] => TraceEvent::Crashes(own(failpoint)),
        ["store-away"] => TraceEvent::StoreAway,
        ["store-back"] => TraceEvent::StoreBack,
        ["fails", name] => TraceEvent::Fails(own(name)),
        _ => return None,
    })
}

impl ObservedWorkspace {
    /// Parses the words of a trace. Skips the storage generation, which can be observed only in
    /// archives (`stored`).
    fn of(words: &[&str]) -> Self {
        let shows = |word: &&&str| !word.starts_with("generation=") && **word != "gone";
        Self(words.iter().filter(shows).map(|word| (*word).to_owned()).collect())
    }

    /// Drops the agent's epoch unless `other` has one.
    #[must_use]
    pub fn without_epoch_unless_in(mut self, other: &Self) -> Self {
        let says = |state: &Self| state.0.iter().any(|word| word.starts_with("epoch="));
        if !says(other) {
            self.0.retain(|word| !word.starts_with("epoch="));
        }
        self
    }
}
