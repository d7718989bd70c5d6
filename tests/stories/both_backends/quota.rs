//! There is room for so many: who comes later waits in line, is told where, and gets the place that is freed.

use podling_proto::{agent::v1::CreateTerminalRequest, control::v1::State, error::Reason};
use podling_tests::{
    Podling, Workspace,
    client_helpers::{argv, reason},
    podling::PodlingOptions,
    pty::TerminalWindow,
    wait_for,
};

const LARGE: &str = "[resources]\ncpu = \"800m\"\nmemory = \"256MiB\"\n";
const MOST: &str = "[resources]\ncpu = \"300m\"\nmemory = \"256MiB\"\n";
const HALF: &str = "[resources]\ncpu = \"200m\"\nmemory = \"256MiB\"\n";
const SMALL: &str = "[resources]\ncpu = \"100m\"\nmemory = \"256MiB\"\n";
const HUNGRY: &str = "[resources]\ncpu = \"100m\"\nmemory = \"3GiB\"\n";

async fn up(args: &[&str]) -> Podling {
    let templates =
        vec![("large", LARGE), ("most", MOST), ("half", HALF), ("small", SMALL), ("hungry", HUNGRY)];
    Podling::up_with(PodlingOptions { args: argv(args), templates, ..PodlingOptions::default() }).await
}

/// Made, and waiting in line at this place.
async fn waits(podling: &Podling, name: &str, flags: &[&str], place: u32) -> Workspace {
    let workspace = podling.create(name, &[flags, &["--no-wait"]].concat()).await;
    stands_at(podling, &workspace, place).await;
    workspace
}

async fn stands_at(podling: &Podling, workspace: &Workspace, place: u32) {
    wait_for(&format!("{} is at position {place} of the admission queue", workspace.name), async || {
        let now = podling.get(workspace).await;
        (now.state() == State::Queued && now.queue_position == place).then_some(())
    })
    .await;
}

async fn sleep(podling: &Podling, workspace: &Workspace) {
    podling.cli().run(&["sleep", &workspace.id, "--force"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_owner_has_a_share_and_the_first_in_line_gets_what_is_freed() {
    let podling = up(&["--quota-awake", "1"]).await;
    let cli = podling.cli();
    let one = podling.create("one", &[]).await;
    let two = waits(&podling, "two", &[], 1).await;
    let three = waits(&podling, "three", &[], 2).await;
    // Another's share is another's.
    let bobs = podling.create("one", &["--owner", "bob"]).await;
    waits(&podling, "two", &["--owner", "bob"], 3).await;
    let listed = cli.run(&["ls"]).await.ok().out();
    for (name, place) in [("two", "position 1"), ("three", "position 2")] {
        let line = listed.lines().find(|line| line.starts_with(name)).expect("it is listed");
        assert!(line.contains("queued") && line.contains(place), "{listed}");
    }
    assert!(cli.run(&["explain", "two"]).await.ok().out().contains("1st in the admission queue"));

    // Somebody sits in front of the last of the line, and waits.
    let mut window = TerminalWindow::open(&cli.command(&["attach", "three"]));
    window.wait_for_text("in the admission queue").await;
    sleep(&podling, &one).await;
    podling.wait_until_awake(&two).await;
    stands_at(&podling, &three, 1).await;
    assert_eq!(podling.get(&bobs).await.state(), State::Awake);
    sleep(&podling, &two).await;
    window.wait_for_prompt().await;
    window.type_text("echo he''re\r");
    window.wait_for_text("here").await;
    // Who wants back waits like everybody.
    cli.run(&["wake", "one", "--no-wait"]).await.ok();
    wait_for("one waits again", async || (podling.get(&one).await.queue_position > 0).then_some(())).await;
    assert_eq!(podling.get(&three).await.state(), State::Awake);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_in_line_too_and_not_for_ever() {
    let podling = up(&["--capacity-awake", "1"]).await;
    let one = podling.create("one", &[]).await;
    let two = waits(&podling, "two", &["--owner", "bob"], 1).await;
    let three = waits(&podling, "three", &["--owner", "carol"], 2).await;
    let open = async |workspace: &Workspace| {
        let request = CreateTerminalRequest { argv: argv(&["cat"]), ..Default::default() };
        podling.client().for_workspace(&workspace.id).terminals().create(request).await
    };
    let freed = async {
        wait_for("both calls are held", async || {
            (podling.metric("podling_held_requests").await == Some(2.0)).then_some(())
        })
        .await;
        sleep(&podling, &one).await;
    };
    let (first, second, ()) = tokio::join!(open(&two), open(&three), freed);
    assert!(first.is_ok(), "{first:?}");
    let refused = second.expect_err("two has the only place");
    assert_eq!(reason(&refused), Reason::WakeTimeout);
    assert!(refused.message().contains("at position 1 of the admission queue"), "{refused:?}");
    assert_eq!(podling.get(&three).await.queue_position, 1, "it keeps its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn cores_and_memory_are_shared_and_what_never_fits_is_refused() {
    let podling = up(&["--quota-cpu", "400m", "--quota-memory", "2GiB"]).await;
    let cli = podling.cli();
    for template in ["large", "hungry"] {
        let refused = cli.run(&["create", "never", "--template", template]).await;
        assert!(refused.code.is_some_and(|code| code != 0), "{refused:?}");
        assert!(refused.err().contains("more CPU or memory than the quota allows"), "{}", refused.err());
    }
    assert_eq!(cli.run(&["ls", "--json"]).await.ok().json(), serde_json::json!([]), "nothing is made");
    let first = podling.create("first", &["--template", "most"]).await;
    let second = waits(&podling, "second", &["--template", "most"], 1).await;
    // It would fit beside the first, but the second was there before it.
    let third = waits(&podling, "third", &["--template", "small"], 2).await;
    sleep(&podling, &first).await;
    podling.wait_until_awake(&second).await;
    podling.wait_until_awake(&third).await;
    cli.run(&["wake", "first", "--no-wait"]).await.ok();
    stands_at(&podling, &first, 1).await;
    cli.run(&["rm", "second"]).await.ok();
    podling.wait_until_awake(&first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_more_waits_for_it_and_loses_nothing_meanwhile() {
    let podling = up(&["--quota-cpu", "400m"]).await;
    let cli = podling.cli();
    let one = podling.create("one", &["--template", "half"]).await;
    let two = podling.create("two", &["--template", "half"]).await;
    let mut window = TerminalWindow::open(&cli.command(&["attach", "one"]));
    window.wait_for_prompt().await;
    window.type_text("job() { until test -e over; do sleep 0.1; done; echo all do''ne; }; job\r");
    let never = cli.run(&["resize", "one", "--cpu", "500m"]).await;
    assert!(never.err().contains("more CPU or memory than the quota allows"), "{}", never.err());
    let said = cli.run(&["resize", "one", "--cpu", "300m"]).await.ok().out();
    assert!(said.contains("one has 0.2 cores") && said.contains("waits for 0.3 cores"), "{said}");
    wait_for("it is queued", async || (podling.get(&one).await.queue_position == 1).then_some(())).await;
    let explained = cli.run(&["explain", "one"]).await.ok().out();
    assert!(
        explained.contains("has been awake") && explained.contains("1st in the admission queue"),
        "{explained}"
    );

    sleep(&podling, &two).await;
    wait_for("it has more", async || {
        let now = podling.get(&one).await;
        (now.allocated == now.requested && now.allocated?.cpu_millis == 300).then_some(())
    })
    .await;
    podling.client().for_workspace(&one.id).sh("touch ~/over").await;
    window.wait_for_text("all done").await;
    // There is a tenth of a core left, which is not enough for the other as it is, but for half of it.
    cli.run(&["wake", "two", "--no-wait"]).await.ok();
    stands_at(&podling, &two, 1).await;
    cli.run(&["resize", "two", "--cpu", "100m"]).await.ok();
    podling.wait_until_awake(&two).await;
}
