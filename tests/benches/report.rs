//! Writes the measured parts of BENCHMARKS.md. A row has the median, the spread, the ratio to the
//! peer of the same run, and whether the goal is met.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::stats::{Samples, Summary};

/// Goal for a row's ratio to the peer, or for its own value. The median is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// Samples of one quantity, with those of a peer, and goals.
#[derive(Debug)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    samples: Samples,
    peer: Option<(String, Samples)>,
    ratio_goal: Option<Goal>,
    own_goal: Option<Goal>,
}

/// Rows, skipped measurements, and facts about the machine.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    skipped: Vec<String>,
    facts: Vec<String>,
}

// === impl Row ===

impl Row {
    pub(crate) fn new(name: String, unit: &'static str, samples: &Samples) -> Self {
        Self { name, unit, samples: samples.clone(), peer: None, ratio_goal: None, own_goal: None }
    }

    #[must_use]
    pub(crate) fn peer(mut self, name: &str, samples: &Samples) -> Self {
        self.peer = Some((name.to_owned(), samples.clone()));
        self
    }

    /// Sets the goal of the ratio to the peer.
    #[must_use]
    pub(crate) fn goal(mut self, goal: Goal) -> Self {
        self.ratio_goal = Some(goal);
        self
    }

    /// Sets the goal of the value itself.
    #[must_use]
    pub(crate) fn absolute(mut self, goal: Goal) -> Self {
        self.own_goal = Some(goal);
        self
    }

    fn markdown(&self) -> String {
        let summary = self.samples.summary();
        let ratio = self.peer.as_ref().map(|(_, samples)| self.samples.ratio(samples));
        let (goal, met) = match (self.ratio_goal, ratio, self.own_goal) {
            (Some(goal), Some(ratio), _) => (format!("{goal}×"), goal.met(ratio)),
            (_, _, Some(goal)) => (format!("{goal} {}", self.unit), goal.met(summary)),
            _ => (String::new(), ""),
        };
        let peer = self.peer.as_ref().map_or(String::new(), |(name, s)| format!("{name}: {}", s.summary()));
        let ratio = ratio.map_or(String::new(), |r| format!("{r}×"));
        format!("| {} | {} {} | {peer} | {ratio} | {goal} | {met} |", self.name, summary, self.unit)
    }
}

// === impl Goal ===

impl Goal {
    fn met(self, value: Summary) -> &'static str {
        let met = match self {
            Self::AtMost(most) => value.median <= most,
            Self::AtLeast(least) => value.median >= least,
        };
        if met { "yes" } else { "**no**" }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most}"),
            Self::AtLeast(least) => write!(f, "≥ {least}"),
        }
    }
}

// === impl Report ===

impl Report {
    pub(crate) fn row(&mut self, row: Row) {
        println!("{}", row.markdown());
        self.rows.push(row);
    }

    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        println!("skipped: {name}: {why}");
        self.skipped.push(format!("{name}: {why}"));
    }

    pub(crate) fn fact(&mut self, fact: String) {
        self.facts.push(fact);
    }

    /// Replaces the text between the two marks of `part`, which are HTML comments, in the page.
    pub(crate) fn write(&self, page: &Path, part: &str) -> Result<()> {
        let (begin, end) = (format!("<!-- {part}: begin -->\n"), format!("<!-- {part}: end -->\n"));
        let old = fs::read_to_string(page)?;
        let parts = old.split_once(&begin).and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)));
        let (head, tail) = parts.with_context(|| format!("{} has no mark {begin}", page.display()))?;
        Ok(fs::write(page, format!("{head}{begin}{}{end}{tail}", self.markdown()?))?)
    }

    fn markdown(&self) -> Result<String> {
        let mut page = String::new();
        writeln!(page, "Measured {} on:\n", shell("date -u +%F")?)?;
        for fact in &self.facts {
            writeln!(page, "- {fact}")?;
        }
        writeln!(page, "\n| what | Podling: median (spread) | peer, same run | ratio | goal | met |")?;
        writeln!(page, "|---|---|---|---|---|---|")?;
        for row in &self.rows {
            writeln!(page, "{}", row.markdown())?;
        }
        for skipped in &self.skipped {
            writeln!(page, "\nSkipped: {skipped}.")?;
        }
        Ok(page)
    }
}

/// Returns the first line of a shell command's output, without surrounding spaces.
pub(crate) fn shell(command: &str) -> Result<String> {
    let output = Command::new("sh").args(["-c", command]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned())
}
