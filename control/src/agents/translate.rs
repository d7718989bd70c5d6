//! Translates between proto messages and driver types. Validates or truncates everything that an
//! agent sends, because an agent is only as trusted as its user.

use std::{sync::Arc, time::Duration};

use podling_core::{id::WorkspaceId, observed::Failure, status::Urgency, time::Timestamp, workspace::Spec};
use podling_proto::{
    agent::v1::{ActivityState, Usage},
    control::v1::{
        AgentSettings, AwaitClaim, Cancel, Claim, ClaimId, Commit, ControlMessage, Directive,
        DirectiveResult, Dismiss, Done, Drain, HeartbeatAck, Hello, Prepare, TokenKey, Warn,
        control_message::Message, directive::Directive as DirectiveBody, directive_result,
    },
    error::{self, Reason, WireError},
};
use tokio::sync::mpsc;

use crate::{
    activity::ReportedActivity,
    backend::{InstanceId, ReportedProcess},
    driver::{
        AgentDirective, AgentHello, ClaimContent, ConnectionId, DirectiveAnswer, DirectiveId, SleepStep,
    },
    reasons,
};

/// Version of the agent protocol that this control plane speaks.
const PROTOCOL: u32 = 1;
/// Longest boot id, version or capability, in characters.
const MAX_WORD_CHARS: usize = 64;
const MAX_CAPABILITIES: usize = 32;
/// Pieces of evidence retained from one heartbeat. Agents send the strongest evidence first.
const MAX_EVIDENCE: usize = 32;
const MAX_LEASES: usize = 64;
/// Lines of a failing command's output retained from one heartbeat.
const MAX_OUTPUT_LINES: usize = 20;
/// Longest human-readable text of an agent, in characters; the rest is cut off.
const MAX_TEXT_CHARS: usize = 200;

/// Id of a directive that is not answered.
const NO_REPLY_ID: u64 = 0;
/// Longest interval between two heartbeats. A workspace with an idle timeout below one minute uses
/// a quarter of its timeout.
const MAX_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// Shortest interval between two heartbeats, for workspaces with an idle timeout of a few seconds.
const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Longest time for which an intent makes a workspace active. At most a quarter of the idle
/// timeout.
const MAX_ACTIVE_FOR: Duration = Duration::from_secs(60);
/// Longest window over which work is measured. At most the idle timeout.
const MAX_WORK_WINDOW: Duration = Duration::from_secs(60);
const MIN_WORK_WINDOW: Duration = Duration::from_secs(1);

pub(super) fn reported_process(hello: &Hello) -> ReportedProcess {
    ReportedProcess { pid: hello.pid, start_ticks: hello.start_ticks }
}

/// Validates a hello message. `workspace` and `instance` come from the agent's credential.
pub(super) fn hello(
    hello: Hello,
    workspace: WorkspaceId,
    instance: InstanceId,
    connection: ConnectionId,
    directives: mpsc::Sender<AgentDirective>,
) -> Result<AgentHello, WireError> {
    if !(hello.protocol_min..=hello.protocol_max).contains(&PROTOCOL) {
        let message = format!(
            "this control plane speaks protocol {PROTOCOL}, but the agent speaks {} to {}; use an agent of \
             the control plane's version",
            hello.protocol_min, hello.protocol_max
        );
        return Err(WireError::new(Reason::UnknownMethod, message));
    }
    let word = |what: &str, text: String| {
        let fits = (1..=MAX_WORD_CHARS).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
        let bad = || {
            let message = format!("{what} must have 1 to {MAX_WORD_CHARS} printable ASCII characters");
            WireError::new(Reason::BadField, message)
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
        directives,
    })
}

/// Translates an activity report. Truncates its texts and lists, and replaces unknown enum values.
pub(super) fn activity(report: ActivityState) -> ReportedActivity {
    let counted_idle = report.counted_idle.and_then(|counted| Duration::try_from(counted).ok());
    ReportedActivity {
        level: report.level(),
        counted_idle: counted_idle.unwrap_or_default(),
        at: report.at.as_ref().and_then(millis),
        details: within_bounds(report),
    }
}

fn within_bounds(mut activity: ActivityState) -> ActivityState {
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
        warning.cause = warning.cause().into();
    }
    if let Some(failure) = &mut activity.command_failure {
        failure.kind = failure.kind().into();
        failure.output.truncate(MAX_OUTPUT_LINES);
        let lines = [&mut failure.program, &mut failure.detail];
        lines.into_iter().chain(&mut failure.output).for_each(truncate_line);
    }
    if let Some(usage) = &mut activity.usage {
        sanitize_usage(usage);
    }
    activity
}

pub(super) fn control_message(directive: AgentDirective, token_keys: &[TokenKey]) -> ControlMessage {
    message(match directive {
        AgentDirective::Wait => Message::AwaitClaim(AwaitClaim {}),
        AgentDirective::Claim(content) => Message::Claim(claim(&content, token_keys)),
        AgentDirective::Sleep(DirectiveId(id), step, cause) => {
            let step = match step {
                SleepStep::Prepare(urgency) => DirectiveBody::Prepare(Prepare {
                    hold: None,
                    force: urgency == Urgency::Forced,
                    requested: urgency == Urgency::Requested,
                    cause: cause.map_or(0, |cause| reasons::sleep_cause(cause).into()),
                }),
                SleepStep::Commit => DirectiveBody::Commit(Commit {}),
                SleepStep::Cancel => DirectiveBody::Cancel(Cancel {}),
            };
            Message::Directive(Directive { id, directive: Some(step) })
        }
        AgentDirective::Warn(warning) => {
            let (at, cause) = warning.unzip();
            let warn = Warn {
                at: at.map(reasons::timestamp),
                cause: cause.map_or(0, |cause| reasons::sleep_cause(cause).into()),
            };
            Message::Directive(Directive { id: NO_REPLY_ID, directive: Some(DirectiveBody::Warn(warn)) })
        }
        AgentDirective::Drain { grace } => {
            // The grace period is a few seconds and always converts.
            let drain = DirectiveBody::Drain(Drain { grace: prost_types::Duration::try_from(grace).ok() });
            Message::Directive(Directive { id: NO_REPLY_ID, directive: Some(drain) })
        }
        AgentDirective::Dismiss(why) => return dismiss(Reason::Conflict, &why),
    })
}

/// Translates an agent's answer to a directive. Returns `None` for a kind of result that this
/// version does not know.
pub(super) fn directive_answer(
    result: DirectiveResult,
    workspace: WorkspaceId,
    connection: ConnectionId,
) -> Option<DirectiveAnswer> {
    let directive = DirectiveId(result.id);
    let (result, report) = match result.result? {
        directive_result::Result::Done(Done {}) => (Ok(()), None),
        directive_result::Result::Declined(mut declined) => {
            truncate_line(&mut declined.detail);
            let reason = reasons::declined(declined.reason());
            (Err(Failure::Declined { reason, detail: declined.detail }), declined.activity)
        }
    };
    let activity = report.map(|report| Arc::new(activity(report)));
    Some(DirectiveAnswer { workspace, connection, directive, result, activity })
}

/// Returns the message that ends an agent's session. `why` is for the agent's log.
pub(super) fn dismiss(reason: Reason, why: &str) -> ControlMessage {
    message(Message::Dismiss(Dismiss { reason: error::name(reason).into(), message: why.into() }))
}

pub(super) fn ack(sequence: u64) -> ControlMessage {
    message(Message::HeartbeatAck(HeartbeatAck { sequence }))
}

fn claim(content: &ClaimContent, token_keys: &[TokenKey]) -> Claim {
    let spec: &Spec = &content.spec;
    // The agent uses the protocol's defaults for fields that are left out.
    let idle_timeout = spec.policy.idle_timeout;
    let quarter = idle_timeout / 4;
    let settings = AgentSettings {
        heartbeat_interval: reasons::span(quarter.clamp(MIN_HEARTBEAT_INTERVAL, MAX_HEARTBEAT_INTERVAL)),
        active_for: reasons::span(quarter.min(MAX_ACTIVE_FOR)),
        work_window: reasons::span(idle_timeout.clamp(MIN_WORK_WINDOW, MAX_WORK_WINDOW)),
        ..AgentSettings::default()
    };
    Claim {
        id: Some(ClaimId { workspace_id: spec.id.to_string(), epoch: content.epoch }),
        protocol: PROTOCOL,
        policy: Some(reasons::policy(&spec.policy)),
        env: spec.env.clone().into_iter().collect(),
        command: if content.maintenance { Vec::new() } else { spec.command.clone() },
        token_keys: token_keys.to_vec(),
        workspace_name: spec.name.to_string(),
        maintenance: content.maintenance,
        settings: Some(settings),
    }
}

fn millis(at: &prost_types::Timestamp) -> Option<Timestamp> {
    let seconds = u64::try_from(at.seconds).ok()?;
    let nanos = u64::try_from(at.nanos).ok()?;
    Some(Timestamp(seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)))
}

fn message(message: Message) -> ControlMessage {
    ControlMessage { message: Some(message) }
}

fn truncate_line(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT_CHARS) {
        text.truncate(end);
    }
}

/// Replaces NaN, infinities and negative numbers by 0, because they would falsify sums.
fn sanitize_usage(usage: &mut Usage) {
    for number in [&mut usage.cpu_cores, &mut usage.io_bytes_per_second] {
        if !number.is_finite() || *number < 0.0 {
            *number = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::agent::v1::{
        ActivityLevel, CommandFailure, CommandFailureKind, Evidence, Lease, SleepCause, SleepWarning,
    };
    use prost::Message as _;

    use super::*;

    fn valid_hello() -> Hello {
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

    fn translated(message: Hello) -> Result<AgentHello, WireError> {
        let instance = InstanceId("one".into());
        hello(message, WorkspaceId::from_bits(1), instance, ConnectionId(1), mpsc::channel(1).0)
    }

    #[test]
    fn invalid_hello_is_rejected() {
        assert!(translated(valid_hello()).is_ok());
        let newer = translated(Hello { protocol_min: 2, ..valid_hello() }).unwrap_err();
        assert!(newer.message().contains("protocol 1"), "{}", newer.message());
        for bad in [
            Hello { boot_id: String::new(), ..valid_hello() },
            Hello { boot_id: "x".repeat(65), ..valid_hello() },
            Hello { version: "1\u{1b}[2J".into(), ..valid_hello() },
            Hello { key_fingerprint: "short".into(), ..valid_hello() },
            Hello { protocol_min: 2, protocol_max: 1, ..valid_hello() },
        ] {
            assert!(translated(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn claims_of_other_releases_can_be_decoded() {
        let policy = reasons::policy(&podling_core::policy::Policy::default());
        let claim = Claim { policy: Some(policy), ..Claim::default() };
        assert_eq!(claim.encode_to_vec()[0] >> 3, 10, "earlier agents read another type from field 3");
        // Field 3 with the `double cpu_cores = 7` of the former type.
        let former = [&[3 << 3 | 2, 9, 7 << 3 | 1][..], &0.05_f64.to_le_bytes()].concat();
        assert_eq!(Claim::decode(&former[..]), Ok(Claim::default()));
    }

    #[test]
    fn time_of_heartbeat_saturates() {
        let millis_of = |seconds, nanos| millis(&prost_types::Timestamp { seconds, nanos });
        assert_eq!(millis_of(2, 3_000_000), Some(Timestamp(2003)));
        assert_eq!(millis_of(i64::MAX, 999_999_999), Some(Timestamp(u64::MAX)));
        assert_eq!((millis_of(-1, 0), millis_of(0, -1)), (None, None));
    }

    #[test]
    fn oversized_heartbeat_is_truncated() {
        let evidence = Evidence { signal: 999, detail: "ä".repeat(10_000), ..Default::default() };
        let lease = Lease { name: "n".repeat(10_000), ..Default::default() };
        let warning = SleepWarning { at: None, cause: 999 };
        let usage = Usage { cpu_cores: f64::NAN, io_bytes_per_second: -1.0, ..Default::default() };
        let failure = CommandFailure {
            program: "p".repeat(10_000),
            kind: 999,
            detail: "d".repeat(10_000),
            output: vec!["o".repeat(10_000); 1000],
            ..Default::default()
        };
        let taken = activity(ActivityState {
            level: 77,
            command_failure: Some(failure),
            evidence: vec![evidence; 1000],
            leases: vec![lease; 1000],
            usage: Some(usage),
            sleep_warning: Some(warning),
            ..Default::default()
        });
        assert_eq!(taken.level, ActivityLevel::Unspecified);
        let taken = taken.details;
        assert_eq!((taken.evidence.len(), taken.leases.len()), (MAX_EVIDENCE, MAX_LEASES));
        assert_eq!(taken.evidence[0].detail.chars().count(), MAX_TEXT_CHARS);
        assert_eq!(taken.leases[0].name.chars().count(), MAX_TEXT_CHARS);
        let failure = taken.command_failure.expect("a failure");
        assert_eq!(failure.kind(), CommandFailureKind::Unspecified);
        assert_eq!((failure.program.len(), failure.detail.len()), (MAX_TEXT_CHARS, MAX_TEXT_CHARS));
        assert_eq!((failure.output.len(), failure.output[0].len()), (MAX_OUTPUT_LINES, MAX_TEXT_CHARS));
        assert_eq!(taken.sleep_warning.unwrap().cause(), SleepCause::Unspecified);
        let usage = taken.usage.unwrap();
        assert_eq!((usage.cpu_cores, usage.io_bytes_per_second), (0.0, 0.0));
    }
}
