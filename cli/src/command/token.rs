//! `podling token`: creates tokens from the token in use, and describes it.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use podling_proto::{
    control::v1::{CreateTokenRequest, DescribeTokenRequest, TokenInfo},
    json::to_json,
    v1::Verb,
    verb,
};

use crate::{
    backoff::retry_call,
    client::Context,
    duration::{self, left, show},
    failure::CommandFailure,
    output::{self, Tone, paint},
};

const EXAMPLES: &str = "\
Example:
  podling token create --verbs read,terminal --workspace demo --ttl 8h";

/// Create tokens or describe the token in use
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TokenArgs {
    #[command(subcommand)]
    action: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Create a token that allows at most what your own allows, and print it
    Create(TokenCreateArgs),
    /// Describe the token in use
    Describe,
}

#[derive(Debug, Args)]
struct TokenCreateArgs {
    /// Verbs to allow, separated by commas: read, terminal-watch, terminal, process, files-read,
    /// files-write, keep-awake, lifecycle, token, admin
    #[arg(long, required = true, value_delimiter = ',', value_name = "VERB,…", value_parser = parse_verb)]
    verbs: Vec<String>,
    /// Restrict the token to these workspaces (names or ids), separated by commas [default: all of
    /// the owner's]
    #[arg(long = "workspace", value_delimiter = ',', value_name = "NAME,…")]
    workspaces: Vec<String>,
    /// Lifetime of the token, 1s to 30d [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// Owner of the token (needs a token with the verb `admin`) [default: your own]
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// Create a token for calling the agent of one workspace directly; the gateway rejects it
    #[arg(long, requires = "workspaces")]
    for_agent: bool,
}

impl TokenArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let client = context.client().await?;
        let (token, info) = match self.action {
            TokenCommand::Create(create) => {
                let answer = client.tokens().create(create.request()).await?.into_inner();
                (Some(answer.token), answer.info)
            }
            TokenCommand::Describe => {
                let answer = retry_call(async || client.tokens().describe(DescribeTokenRequest {}).await);
                (None, answer.await?.info)
            }
        };
        let info = info.unwrap_or_default();
        if context.json() {
            let mut json = to_json(&info);
            token.into_iter().for_each(|token| json["token"] = token.into());
            output::json(&json)?;
        } else if let Some(token) = token {
            output::print(&format!("{token}\n"))?;
            eprint!("{}", render(&info, SystemTime::now()));
        } else {
            output::print(&render(&info, SystemTime::now()))?;
        }
        Ok(0)
    }
}

impl TokenCreateArgs {
    fn request(self) -> CreateTokenRequest {
        CreateTokenRequest {
            verbs: self.verbs,
            workspaces: self.workspaces,
            ttl: self.ttl.map(duration::to_wire),
            owner: self.owner,
            for_agent: self.for_agent,
        }
    }
}

fn parse_verb(text: &str) -> Result<String, String> {
    if verb::ALL.iter().any(|(_, name)| *name == text) {
        return Ok(text.to_owned());
    }
    let names: Vec<_> = verb::ALL.iter().map(|(_, name)| *name).collect();
    Err(format!("expected one of {}", names.join(", ")))
}

fn render(info: &TokenInfo, now: SystemTime) -> String {
    let workspaces = match info.workspaces.as_slice() {
        [] if info.verbs.iter().any(|verb| verb == verb::name(Verb::Admin)) => "all".to_owned(),
        [] => format!("all workspaces of {}", info.owner),
        some => some.join(", "),
    };
    let in_time = || show(left(info.expires, now).unwrap_or_default());
    let expires = info.expires.map_or_else(|| "never".to_owned(), |at| format!("{at} (in {})", in_time()));
    let audience = if info.for_agent { "direct calls to the workspace's agent" } else { "the control plane" };
    let rows = [
        ("for", audience.to_owned()),
        ("owner", info.owner.clone()),
        ("allows", info.verbs.join(", ")),
        ("workspaces", workspaces),
        ("expires", expires),
    ];
    rows.iter()
        .map(|(name, value)| format!("{} {value}\n", paint(&format!("{name:<10}"), Tone::Faint)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_description_shows_scope_and_expiry() {
        let info = TokenInfo {
            owner: "ada".to_owned(),
            verbs: vec!["read".to_owned(), "terminal".to_owned()],
            workspaces: Vec::new(),
            expires: Some(prost_types::Timestamp { seconds: 3_700, nanos: 0 }),
            for_agent: false,
        };
        let text = render(&info, SystemTime::UNIX_EPOCH + Duration::from_secs(100));
        assert!(text.contains("allows     read, terminal"), "{text}");
        assert!(
            text.contains("all workspaces of ada") && text.contains("1970-01-01T01:01:40Z (in 1h)"),
            "{text}"
        );
    }

    #[test]
    fn unknown_verb_error_lists_valid_verbs() {
        assert!(parse_verb("read").is_ok());
        assert!(parse_verb("fly").expect_err("no verb").contains("keep-awake"));
    }
}
