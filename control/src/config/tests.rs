//! Tests of precedence, defaults and error messages.

use super::*;

fn load(
    data: impl Into<Option<PathBuf>>,
    args: &ControlArgs,
    env: &[(&str, &str)],
) -> Result<ControlConfig, ConfigError> {
    let env: Vec<_> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let env = move |name: &str| env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
    ControlConfig::load(
        data.into().as_deref(),
        args,
        &env,
        ProgramDefaults { agent_command: vec!["podling-agent".into()], sleep_idle_on_shutdown: false },
    )
}

#[test]
fn config_defaults_need_no_settings() {
    let config = load(None, &ControlArgs::default(), &[("HOME", "/home/ada")]).expect("config");
    assert_eq!(config.data, Path::new("/home/ada/.local/share/podling"));
    assert_eq!(config.listen.to_string(), "127.0.0.1:7411");
    assert_eq!((config.tls, config.log_format), (None, LogFormat::Text));
    assert_eq!(config.default_template, "shell");
    assert_eq!(config.agent_command, ["podling-agent"]);
    assert_eq!(config.backups, "file:///home/ada/.local/share/podling/backups");
    let config = load(None, &ControlArgs::default(), &[("HOME", "/home/ada"), ("XDG_DATA_HOME", "/data")])
        .expect("config");
    assert_eq!(config.data, Path::new("/data/podling"));
    let empty = [("HOME", "/home/ada"), ("PODLING_DATA", ""), ("PODLING_CONFIG", ""), ("PODLING_LISTEN", "")];
    let config = load(None, &ControlArgs::default(), &empty).expect("config");
    assert_eq!(
        config.data,
        Path::new("/home/ada/.local/share/podling"),
        "an empty variable is treated as unset"
    );
}

#[test]
fn flag_overrides_environment_overrides_file() {
    let directory = tempfile::tempdir().expect("directory");
    let text = "listen = \"127.0.0.1:1\"\nlog_format = \"json\"\nagent_command = [\"my agent\", \"-v\"]\n\
                cors_origins = [\"https://a.example\"]\n";
    fs::write(directory.path().join("config.toml"), text).expect("write");
    let file = load(directory.path().to_owned(), &ControlArgs::default(), &[]).expect("config");
    assert_eq!((file.listen.port(), file.log_format), (1, LogFormat::Json));
    assert_eq!(file.agent_command, ["my agent", "-v"]);
    let env = [("PODLING_LISTEN", "127.0.0.1:2"), ("PODLING_CORS_ORIGINS", "https://b.example, http://c:1")];
    let variable = load(directory.path().to_owned(), &ControlArgs::default(), &env).expect("config");
    assert_eq!((variable.listen.port(), variable.log_format), (2, LogFormat::Json));
    assert_eq!(variable.cors_origins, ["https://b.example", "http://c:1"]);
    let away = load(
        directory.path().to_owned(),
        &ControlArgs::default(),
        &[("PODLING_BACKUPS", "s3://bucket/team")],
    );
    assert_eq!(away.expect("config").backups, "s3://bucket/team");
    let spaced = load(Some("/my data".into()), &ControlArgs::default(), &[]).expect("config");
    assert_eq!(spaced.backups, "file:///my%20data/backups");
    let flags = ControlArgs { listen: Some("localhost:3".into()), ..ControlArgs::default() };
    assert_eq!(
        load(directory.path().to_owned(), &flags, &env).expect("config").listen.to_string(),
        "127.0.0.1:3"
    );
}

#[test]
fn boolean_and_lists_are_accepted_where_documented() {
    let directory = tempfile::tempdir().expect("directory");
    let text = "listen = \"0.0.0.0:1\"\nallow_plaintext = true\ncors_origins = [\"https://a.example\"]\n\
                agent_command = [\"agent\"]\n";
    fs::write(directory.path().join("config.toml"), text).expect("write");
    let config = load(directory.path().to_owned(), &ControlArgs::default(), &[]).expect("config");
    assert_eq!((config.cors_origins.len(), config.agent_command.len()), (1, 1));
}

#[test]
fn invalid_value_error_names_origin_and_allowed() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("config.toml");
    let wrong = |text: &str, env: &[(&str, &str)], words: &[&str]| {
        fs::write(&file, text).expect("write");
        let error =
            load(directory.path().to_owned(), &ControlArgs::default(), env).expect_err("wrong").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
    };
    wrong("", &[("PODLING_LISTEN", "nowhere")], &["nowhere", "PODLING_LISTEN", "127.0.0.1:7411"]);
    wrong("log_format = \"xml\"", &[], &["xml", "log_format", "config.toml", "text", "json"]);
    wrong("lisen = \"x\"", &[], &["lisen", "config.toml", "listen, log_format"]);
    wrong("listen = 7411", &[], &["listen", "integer", "quotation"]);
    wrong("listen = true", &[], &["listen", "boolean", "quotation"]);
    wrong("listen = [\"127.0.0.1:1\"]", &[], &["listen", "array", "quotation"]);
    wrong("agent_command = [1]", &[], &["agent_command", "array", "list of strings"]);
    wrong("cors_origins = true", &[], &["cors_origins", "boolean", "list of strings"]);
    wrong("allow_plaintext = 1", &[], &["allow_plaintext", "integer", "true or false"]);
    wrong("listen = ", &[], &["config.toml", "line 1"]);
    wrong("", &[("PODLING_CORS_ORIGINS", "*")], &["*", "PODLING_CORS_ORIGINS", "without a path"]);
    wrong("", &[("PODLING_CORS_ORIGINS", "https://a/b")], &["https://a/b", "without a path"]);
    for never in ["https://*.example", "https://Console.example", "https://a.example:443", "http://a:80"] {
        wrong(
            "",
            &[("PODLING_CORS_ORIGINS", never)],
            &[never, "PODLING_CORS_ORIGINS", "as a browser sends them"],
        );
    }
    wrong("", &[("PODLING_TLS_CERT", "/nowhere")], &["/nowhere", "--tls-key"]);
    wrong("allow_plaintext = \"perhaps\"", &[], &["perhaps", "true", "false"]);
    let flags = ControlArgs { config: Some("/nowhere/podling.toml".into()), ..ControlArgs::default() };
    assert!(
        load(directory.path().to_owned(), &flags, &[])
            .expect_err("missing")
            .to_string()
            .contains("/nowhere/podling.toml")
    );
}

#[test]
fn public_address_needs_tls_or_flag() {
    let directory = tempfile::tempdir().expect("directory");
    let open = |listen: &str, allow_plaintext| {
        load(
            directory.path().to_owned(),
            &ControlArgs { listen: Some(listen.into()), allow_plaintext, ..ControlArgs::default() },
            &[],
        )
    };
    for listen in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
        let error = open(listen, false).expect_err("plain text").to_string();
        assert!(error.contains("--listen") && error.contains("--tls-cert"), "{error}");
        assert!(open(listen, true).is_ok());
    }
    for listen in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert!(open(listen, false).is_ok(), "{listen}");
    }
    for name in ["cert", "key"] {
        fs::write(directory.path().join(name), "").expect("write");
    }
    let path = |name| Some(directory.path().join(name).display().to_string());
    let listen = Some("0.0.0.0:1".to_owned());
    let tls = ControlArgs { listen, tls_cert: path("cert"), tls_key: path("key"), ..ControlArgs::default() };
    assert!(load(directory.path().to_owned(), &tls, &[]).is_ok());
}

#[test]
fn kubernetes_needs_a_backup_store() {
    let home = ("HOME", "/home/ada");
    let backend = ("PODLING_BACKEND", "kubernetes");
    let error = load(None, &ControlArgs::default(), &[home, backend]).expect_err("no store").to_string();
    assert!(error.contains("PODLING_BACKUPS"), "{error}");
    let bucket = ("PODLING_BACKUPS", "s3://bucket/team");
    load(None, &ControlArgs::default(), &[home, backend, bucket]).expect("config");
}
