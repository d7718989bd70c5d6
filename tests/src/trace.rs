//! A trace of the simulation as `cargo xtask simulate --record SEED` writes it (`control/core/tests/simulation/record.rs`), read again.
//!
//! ```text
//! # for people
//! > what happens
//! = what a workspace has come to, if it is another thing than before; alone: all rest
//! ```

use std::collections::BTreeMap;

/// One step of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceStep {
    /// Something happens.
    Happens(TraceEvent),
    /// Everything rests: what each workspace has come to, in the words that [`ObservedWorkspace`] has for it.
    Rest(BTreeMap<String, ObservedWorkspace>),
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceEvent {
    /// `podling up`, with these arguments.
    Up(Vec<String>),
    /// A workspace is made for an owner.
    Create(String, String),
    /// Somebody writes this into it.
    Write(String, String),
    /// Put to sleep, though it be in use.
    Sleep(String),
    /// Woken.
    Wake(String),
    /// Brought back after it was deleted.
    Restore(String),
    /// Deleted: its archive is kept.
    Delete(String),
    /// Deleted with all its archives.
    Discard(String),
    /// A time of its policy is this now.
    Policy(String, String, String),
    /// kill -9 of its agent.
    KillAgent(String),
    /// kill -9 of the control plane.
    KillControl,
    /// The next control plane, and where it is to die: `ACTION:before` or `ACTION:after`.
    UpAgain(Option<String>),
    /// It has died there.
    Dies(String),
    /// The backup store goes away.
    StoreAway,
    /// And is there again.
    StoreBack,
    /// It could not be archived or restored.
    Fails(String),
}

/// What can be seen of a workspace from outside. The default: nothing, it is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedWorkspace(pub Vec<String>);

/// Reads a trace; a line that nobody understands is named.
pub fn parse(text: &str) -> Result<Vec<TraceStep>, String> {
    let mut steps = Vec::new();
    let mut now: BTreeMap<String, ObservedWorkspace> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = || format!("line {}: {line}", number + 1);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.split_first() {
            None => {}
            Some((&"#", _)) => {}
            Some((&">", words)) => steps.push(TraceStep::Happens(event(words).ok_or_else(wrong)?)),
            Some((&"=", words)) => {
                if let Some((name, words)) = words.split_first() {
                    now.insert((*name).to_owned(), ObservedWorkspace::of(words));
                }
                // All that follow one another are one rest.
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
        ["up-again"] => TraceEvent::UpAgain(None),
        ["up-again", death] => TraceEvent::UpAgain(Some(own(death))),
        ["dies", death] => TraceEvent::Dies(own(death)),
        ["store-away"] => TraceEvent::StoreAway,
        ["store-back"] => TraceEvent::StoreBack,
        ["fails", name] => TraceEvent::Fails(own(name)),
        _ => return None,
    })
}

impl ObservedWorkspace {
    /// Of the words of a trace. The generation of the storage shows where it is archived only (`stored`).
    fn of(words: &[&str]) -> Self {
        let shows = |word: &&&str| !word.starts_with("generation=") && **word != "gone";
        Self(words.iter().filter(shows).map(|word| (*word).to_owned()).collect())
    }

    /// What is seen, where a trace does not say which agent it was.
    #[must_use]
    pub fn as_much_as(mut self, other: &Self) -> Self {
        let says = |seen: &Self| seen.0.iter().any(|word| word.starts_with("epoch="));
        if !says(other) {
            self.0.retain(|word| !word.starts_with("epoch="));
        }
        self
    }
}
