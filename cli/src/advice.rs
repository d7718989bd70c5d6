//! Commands that messages advise. They repeat the options of this invocation that select the control
//! plane, so that they address the same one.
//!
//! A message contains them from the start. Finished messages are not searched for commands, because
//! they also contain text of workspaces, which may look like a command.

use std::{fmt::Display, sync::OnceLock};

/// Options of this invocation that select the control plane, for example ` --data DIR`. Set once,
/// before a command runs.
static REPEATED_OPTIONS: OnceLock<String> = OnceLock::new();

/// Sets the options that advised commands repeat.
pub fn set_repeated_options(options: String) {
    let _is_set = REPEATED_OPTIONS.set(options);
}

/// Returns the command to advise, with the options of this invocation. `arguments` follow the
/// program's name: `command("attach demo")` is `podling --data DIR attach demo`.
pub fn command(arguments: impl Display) -> String {
    #[cfg(test)]
    if let Some(options) = tests::OPTIONS.get() {
        return with_options(options, arguments);
    }
    with_options(REPEATED_OPTIONS.get().map_or("", String::as_str), arguments)
}

fn with_options(options: &str, arguments: impl Display) -> String {
    format!("podling{options} {arguments}")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{cell::Cell, fs, path::Path};

    use super::*;

    thread_local! {
        /// Options of the invocation that a test imitates. Static options would concern all tests.
        pub(super) static OPTIONS: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Returns the result of `build`, whose commands repeat these options.
    pub(crate) fn repeating<T>(options: &'static str, build: impl FnOnce() -> T) -> T {
        OPTIONS.set(Some(options));
        let built = build();
        OPTIONS.set(None);
        built
    }

    #[test]
    fn commands_repeat_the_options() {
        assert_eq!(command("ls"), "podling ls");
        let name = "a";
        let commands = || [command("ls"), command(format_args!("attach {name} --new"))];
        assert_eq!(
            repeating(" --data /d", commands),
            ["podling --data /d ls", "podling --data /d attach a --new"]
        );
    }

    /// Returns the text of a source file without comments and tests.
    fn product(source: &str) -> String {
        let product = source.split("mod tests {").next().unwrap_or_default();
        let lines = product.lines().filter(|line| !line.trim_start().starts_with("//"));
        let text = lines.collect::<Vec<_>>().join("\n");
        // A literal may continue on the next line.
        text.split("\\\n").map(str::trim_start).collect()
    }

    fn check_sources(directory: &Path) -> usize {
        let mut checked = 0;
        for entry in fs::read_dir(directory).expect("sources").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                checked += check_sources(&entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs")
                && !entry.ends_with("tests.rs")
            {
                let product = product(&fs::read_to_string(&entry).expect("a source"));
                let literal =
                    [": podling ", "with podling "].into_iter().find(|start| product.contains(start));
                assert_eq!(literal, None, "{} spells a command", entry.display());
                checked += 1;
            }
        }
        checked
    }

    #[test]
    fn every_advised_command_is_built_here() {
        let checked = check_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        assert!(checked > 30, "{checked} files");
        let spelled = product("f(\"see: \\\n     podling ls\")\n// see: podling\nmod tests {");
        assert_eq!(spelled, "f(\"see: podling ls\")");
    }
}
