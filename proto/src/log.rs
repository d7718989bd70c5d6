//! Lines of a JSON log that are written without a logger: panics, and errors before the logger is
//! set up. They have the fields of the lines of `tracing-subscriber`, so that a log has one format.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    ffi::OsStr,
    io::Write,
    panic::PanicHookInfo,
    sync::Once,
    time::SystemTime,
};

use prost_types::Timestamp;
use serde_json::{Map, Value, json};

/// Format of the log on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Returns the format that the command line or else the environment requests, for errors that
    /// occur before the configuration is known. `words` is the command line, and `variable` is the
    /// value of the environment variable.
    pub fn requested<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>, variable: Option<&OsStr>) -> Self {
        let mut words = words.into_iter().map(|word| word.as_ref().to_string_lossy().into_owned());
        let mut flag = None;
        while let Some(word) = words.next() {
            match word.strip_prefix("--log-format") {
                Some("") => flag = words.next(),
                Some(value) => flag = value.strip_prefix('=').map(str::to_owned).or(flag),
                None if word == "--" => break,
                None => {}
            }
        }
        let format = flag.or_else(|| variable.map(|value| value.to_string_lossy().into_owned()));
        if format.as_deref() == Some("json") { Self::Json } else { Self::Text }
    }

    /// Reports an error that ends the program to stderr: as "PROGRAM: MESSAGE", or as a line of the
    /// JSON log. Ignores a closed stderr.
    pub fn report(self, program: &str, message: &str) {
        let line = match self {
            Self::Text => format!("{program}: {message}\n"),
            Self::Json => json_line(program, message, Map::new()),
        };
        let _gone = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

/// Writes panics to stderr as lines of the JSON log. The program calls it when its log is JSON;
/// further calls do nothing.
pub fn report_panics_as_json(program: &'static str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(move |panic| {
            let line = panic_line(program, panic, &Backtrace::capture());
            let _gone = std::io::stderr().lock().write_all(line.as_bytes());
        }));
    });
}

fn panic_line(program: &str, panic: &PanicHookInfo<'_>, backtrace: &Backtrace) -> String {
    let mut fields = Map::new();
    let thread = std::thread::current();
    fields.insert("thread".into(), thread.name().unwrap_or("unnamed").into());
    if let Some(location) = panic.location() {
        fields.insert("location".into(), location.to_string().into());
    }
    if backtrace.status() == BacktraceStatus::Captured {
        fields.insert("backtrace".into(), backtrace.to_string().into());
    }
    let message = panic.payload_as_str().unwrap_or("no message");
    json_line(program, &format!("panic: {message}"), fields)
}

/// Returns one line at the level `ERROR`, with its end.
fn json_line(target: &str, message: &str, mut fields: Map<String, Value>) -> String {
    fields.insert("message".into(), message.trim_end().into());
    let timestamp = rfc3339(SystemTime::now());
    format!("{}\n", json!({"timestamp": timestamp, "level": "ERROR", "fields": fields, "target": target}))
}

/// Formats a time in UTC with microseconds, as `tracing-subscriber` does.
fn rfc3339(time: SystemTime) -> String {
    let mut time = Timestamp::from(time);
    time.nanos -= time.nanos % 1000;
    time.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_is_formatted_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000007Z"),
            (951_868_799, "2000-02-29T23:59:59.000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000007Z"),
            (1_796_099_452, "2026-12-01T04:30:52.000007Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, 7_654);
            assert_eq!(rfc3339(time), text);
        }
    }

    #[test]
    fn flag_overrides_variable_of_log_format() {
        let of = |line: &str, variable: Option<&str>| {
            LogFormat::requested(line.split_whitespace(), variable.map(OsStr::new))
        };
        assert_eq!(of("control", None), LogFormat::Text);
        assert_eq!(of("control --bogus", Some("json")), LogFormat::Json);
        assert_eq!(of("control --log-format json", None), LogFormat::Json);
        assert_eq!(of("control --log-format=json --listen", Some("text")), LogFormat::Json);
        assert_eq!(of("control --log-format text", Some("json")), LogFormat::Text);
        assert_eq!(of("agent -- ide --log-format json", None), LogFormat::Text);
    }

    #[test]
    fn panic_is_one_line_with_its_place() {
        static LINES: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name() == Some("worker 3") {
                LINES.lock().expect("a lock").push(panic_line(
                    "podling-agent",
                    panic,
                    &Backtrace::disabled(),
                ));
            } else {
                earlier(panic);
            }
        }));
        let worker = std::thread::Builder::new().name("worker 3".into());
        let ended =
            worker.spawn(|| panic!("index {} is out of bounds\nfor this", 9)).expect("a thread").join();
        assert!(ended.is_err());
        let line = LINES.lock().expect("a lock").pop().expect("a line");
        assert_eq!(line.lines().count(), 1, "{line}");
        let fields: Value = serde_json::from_str::<Value>(&line).expect("JSON")["fields"].take();
        assert_eq!(fields["message"], "panic: index 9 is out of bounds\nfor this");
        assert_eq!(fields["thread"], "worker 3");
        assert!(fields["location"].as_str().is_some_and(|at| at.contains("log.rs")), "{fields}");
    }

    #[test]
    fn json_line_has_the_fields_of_the_logger() {
        let line = json_line("podling-control", "cannot \"listen\"\n  on 1\n", Map::new());
        let (line, rest) = line.split_once('\n').expect("a line");
        assert_eq!(rest, "", "a message of several lines is one line");
        let value: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!((&value["level"], &value["target"]), (&json!("ERROR"), &json!("podling-control")));
        assert_eq!(value["fields"]["message"], "cannot \"listen\"\n  on 1");
    }
}
