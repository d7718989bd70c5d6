//! Between the wire and the driver. What an agent says is truncate_line to size: it is as trusted as its user.

use std::{sync::Arc, time::Duration};

use podling_core::{id::WorkspaceId, observed::Failure, status::Urgency, time::Timestamp, workspace::Spec};
use podling_proto::{
    agent::v1::{ActivityState, Usage},
    control::v1::{
        AgentPolicy, BeatAck, Cancel, Claim, ClaimId, Commit, ControlMessage, Directive, DirectiveResult,
        Dismiss, Done, Drain, Hello, Prepare, TokenKey, Wait, Warn, control_message::Message,
        directive::Directive as DirectiveBody, directive_result,
    },
    error::{self, Reason, WireError},
};
use tokio::sync::mpsc;

use crate::{
    backend::{InstanceId, ReportedProcess},
    driver::{AgentHello, Answer, ClaimContent, ConnectionId, DirectiveId, SleepStep, ToAgent},
};

/// The protocol this control plane speaks.
const PROTOCOL: u32 = 1;
/// Characters of a boot id, a version, a capability.
const MAX_WORD_CHARS: usize = 64;
const MAX_CAPABILITIES: usize = 32;
/// Pieces of evidence and leases kept of a beat: agents show the strongest first.
const MAX_EVIDENCE: usize = 32;
const MAX_LEASES: usize = 64;
/// Characters of a line for people.
const MAX_TEXT_CHARS: usize = 200;

/// The id of a directive whose answer nobody waits for.
const NO_REPLY_ID: u64 = 0;
/// Between two heartbeats; how long an intent counts as activity by itself; end how long work is measured: as in the design, but
/// shorter where a workspace sleeps soon.
const MAX_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
const MAX_ACTIVE_FOR: Duration = Duration::from_secs(60);
const MAX_WORK_WINDOW: Duration = Duration::from_secs(60);
const MIN_WORK_WINDOW: Duration = Duration::from_secs(1);

/// What an agent says of its process.
pub(super) fn process_account(hello: &Hello) -> ProcessAccount {
    ProcessAccount { pid: hello.pid, start_ticks: hello.start_ticks }
}

/// An agent introduces itself. Who it is has been found out.
pub(super) fn hello(
    hello: Hello,
    workspace: WorkspaceId,
    instance: InstanceId,
    connection: ConnectionId,
    to_agent: mpsc::Sender<ToAgent>,
) -> Result<AgentHello, WireError> {
    if !(hello.protocol_min..=hello.protocol_max).contains(&PROTOCOL) {
        let message = format!(
            "this control plane speaks protocol {PROTOCOL}, the agent {} to {}",
            hello.protocol_min, hello.protocol_max
        );
        return Err(WireError::new(Reason::UnknownMethod, message));
    }
    let word = |what: &str, text: String| {
        let fits = (1..=MAX_WORD_CHARS).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
        let bad = || {
            WireError::new(Reason::BadField, format!("{what}: 1 to {MAX_WORD_CHARS} printable characters"))
        };
        if fits { Ok(text) } else { Err(bad()) }
    };
    let fingerprint = hello
        .key_fingerprint
        .parse()
        .map_err(|e: crate::snapshot::BadFingerprint| WireError::new(Reason::BadField, e.to_string()))?;
    let capabilities = hello.capabilities.into_iter().take(MAX_CAPABILITIES);
    Ok(AgentHello {
        workspace,
        connection,
        instance,
        boot_id: word("boot_id", hello.boot_id)?,
        version: word("version", hello.version)?,
        capabilities: capabilities.map(|name| word("capabilities", name)).collect::<Result<_, _>>()?,
        fingerprint,
        to_agent,
    })
}

/// What goes on in a workspace.
pub(super) fn activity(mut activity: ActivityState) -> ActivityState {
    activity.level = activity.level().into();
    activity.evidence.truncate(MAX_EVIDENCE);
    for evidence in &mut activity.evidence {
        evidence.signal = evidence.signal().into();
        truncate_line(&mut evidence.detail);
    }
    activity.leases.truncate(MAX_LEASES);
    for lease in &mut activity.leases {
        truncate_line(&mut lease.name);
        truncate_line(&mut lease.reason);
    }
    if let Some(warning) = &mut activity.sleep_warning {
        truncate_line(&mut warning.reason);
    }
    if let Some(usage) = &mut activity.usage {
        sanitize_usage(usage);
    }
    activity
}

/// What the driver has to say.
pub(super) fn control_message(said: ToAgent, token_keys: &[TokenKey]) -> ControlMessage {
    message(match said {
        ToAgent::Wait => Message::Wait(Wait {}),
        ToAgent::Claim(content) => Message::Claim(claim(&content, token_keys)),
        ToAgent::Sleep(DirectiveId(id), step) => {
            let step = match step {
                SleepStep::Prepare(urgency) => DirectiveBody::Prepare(Prepare {
                    hold: None,
                    force: urgency == Urgency::Forced,
                    requested: urgency == Urgency::Asked,
                }),
                SleepStep::Commit => DirectiveBody::Commit(Commit {}),
                SleepStep::Cancel => DirectiveBody::Cancel(Cancel {}),
            };
            Message::Directive(Directive { id, directive: Some(step) })
        }
        ToAgent::Warn(warning) => {
            let (at, reason) = warning.unzip();
            let warn = Warn { at: at.map(timestamp), reason: reason.unwrap_or_default() };
            Message::Directive(Directive { id: NO_REPLY_ID, directive: Some(DirectiveBody::Warn(warn)) })
        }
        ToAgent::Drain { grace } => {
            // A few seconds: it fits.
            let drain = DirectiveBody::Drain(Drain { grace: prost_types::Duration::try_from(grace).ok() });
            Message::Directive(Directive { id: NO_REPLY_ID, directive: Some(drain) })
        }
        ToAgent::Dismiss(why) => return dismiss(Reason::Conflict, &why),
    })
}

/// What came of a directive.
pub(super) fn directive_answer(
    result: DirectiveResult,
    workspace: WorkspaceId,
    connection: ConnectionId,
) -> Option<Answer> {
    let directive = DirectiveId(result.id);
    let (result, said) = match result.result? {
        directive_result::Result::Done(Done {}) => (Ok(()), None),
        directive_result::Result::Declined(mut declined) => {
            truncate_line(&mut declined.reason);
            (Err(Failure::Declined(declined.reason)), declined.activity)
        }
    };
    let activity = said.map(|said| Arc::new(activity(said)));
    Some(Answer { workspace, connection, directive, result, activity })
}

/// It is not wanted.
pub(super) fn dismiss(reason: Reason, why: &str) -> ControlMessage {
    message(Message::Dismiss(Dismiss { reason: error::name(reason).into(), message: why.into() }))
}

/// A beat was taken.
pub(super) fn ack(sequence: u64) -> ControlMessage {
    message(Message::HeartbeatAck(HeartbeatAck { sequence }))
}

fn claim(content: &ClaimContent, token_keys: &[TokenKey]) -> Claim {
    let spec: &Spec = &content.spec;
    let span = |duration| prost_types::Duration::try_from(duration).ok();
    // What is left out is as the protocol's defaults have it.
    let idle_timeout = spec.policy.idle_timeout;
    let quarter = idle_timeout / 4;
    let policy = AgentPolicy {
        idle_timeout: span(idle_timeout),
        work_cap: span(spec.policy.work_cap),
        presence_cap: span(spec.policy.presence_cap),
        beat_interval: span(quarter.clamp(MIN_HEARTBEAT_INTERVAL, MAX_HEARTBEAT_INTERVAL)),
        active_for: span(quarter.min(MAX_ACTIVE_FOR)),
        work_window: span(idle_timeout.clamp(MIN_WORK_WINDOW, MAX_WORK_WINDOW)),
        ..AgentPolicy::default()
    };
    Claim {
        id: Some(ClaimId { workspace_id: spec.id.to_string(), epoch: content.epoch }),
        protocol: PROTOCOL,
        policy: Some(policy),
        env: spec.env.clone().into_iter().collect(),
        command: if content.maintenance { Vec::new() } else { spec.command.clone() },
        token_keys: token_keys.to_vec(),
        workspace_name: spec.name.to_string(),
        maintenance: content.maintenance,
    }
}

fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let seconds = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    // Below 1000 before it is multiplied.
    prost_types::Timestamp { seconds, nanos: (at.0 % 1000) as i32 * 1_000_000 }
}

fn message(message: Message) -> ControlMessage {
    ControlMessage { message: Some(message) }
}

fn truncate_line(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT_CHARS) {
        text.truncate(end);
    }
}

/// Numbers that are none would spoil every sum they go into.
fn sanitize_usage(usage: &mut Usage) {
    for number in [&mut usage.cpu_cores, &mut usage.io_bytes_per_second] {
        if !number.is_finite() || *number < 0.0 {
            *number = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::agent::v1::{ActivityLevel, Evidence, Lease, SleepWarning};

    use super::*;

    fn good() -> Hello {
        Hello {
            protocol_min: 1,
            protocol_max: 3,
            capabilities: vec!["terminals".into()],
            version: "0.1.0".into(),
            boot_id: "boot".into(),
            key_fingerprint: "ab".repeat(32),
            held_claim: None,
            pid: 7,
            start_ticks: 9,
        }
    }

    fn said(message: Hello) -> Result<AgentHello, WireError> {
        let instance = InstanceId("one".into());
        hello(message, WorkspaceId::from_bits(1), instance, ConnectionId(1), mpsc::channel(1).0)
    }

    #[test]
    fn a_hello_is_taken_only_when_it_makes_sense() {
        assert!(said(good()).is_ok());
        let newer = said(Hello { protocol_min: 2, ..good() }).unwrap_err();
        assert!(newer.message().contains("protocol 1"), "{}", newer.message());
        for bad in [
            Hello { boot_id: String::new(), ..good() },
            Hello { boot_id: "x".repeat(65), ..good() },
            Hello { version: "1\u{1b}[2J".into(), ..good() },
            Hello { key_fingerprint: "short".into(), ..good() },
            Hello { protocol_min: 2, protocol_max: 1, ..good() },
        ] {
            assert!(said(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_beat_is_cut_to_size_whatever_it_brings() {
        let evidence = Evidence { signal: 999, detail: "ä".repeat(10_000), ..Default::default() };
        let lease = Lease { name: "n".repeat(10_000), ..Default::default() };
        let warning = SleepWarning { at: None, reason: "w".repeat(10_000) };
        let usage = Usage { cpu_cores: f64::NAN, io_bytes_per_second: -1.0, ..Default::default() };
        let taken = activity(ActivityState {
            level: 77,
            evidence: vec![evidence; 1000],
            leases: vec![lease; 1000],
            usage: Some(usage),
            sleep_warning: Some(warning),
            ..Default::default()
        });
        assert_eq!(taken.level(), ActivityLevel::Unspecified);
        assert_eq!((taken.evidence.len(), taken.leases.len()), (MAX_EVIDENCE, MAX_LEASES));
        assert_eq!(taken.evidence[0].detail.chars().count(), MAX_TEXT_CHARS);
        assert_eq!(taken.leases[0].name.chars().count(), MAX_TEXT_CHARS);
        assert_eq!(taken.sleep_warning.unwrap().reason.len(), MAX_TEXT_CHARS);
        let usage = taken.usage.unwrap();
        assert_eq!((usage.cpu_cores, usage.io_bytes_per_second), (0.0, 0.0));
    }
}
