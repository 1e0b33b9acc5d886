//! The figures, and the one table that they end in.

/// What has been measured so far.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    measured: String,
    ratio: String,
    target: String,
}

/// What a figure should reach.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// At least so much.
    AtLeast(f64),
    /// At most so much.
    AtMost(f64),
}

impl Target {
    fn reached(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl Report {
    /// A heading.
    pub fn heading(&mut self, text: &str) {
        self.rows.push(Row {
            what: text.to_owned(),
            measured: String::new(),
            ratio: String::new(),
            target: String::new(),
        });
    }

    /// A figure that others are compared with.
    pub fn figure(&mut self, what: &str, measured: impl Into<String>) {
        self.row(what, measured.into(), String::new(), String::new());
    }

    /// A ratio, or another figure that has a target. `unit` follows the value.
    pub fn ratio(&mut self, what: &str, measured: impl Into<String>, value: f64, unit: &str, target: Target) {
        let (sign, goal) = match target {
            Target::AtLeast(goal) => (">=", goal),
            Target::AtMost(goal) => ("<=", goal),
        };
        let verdict = if target.reached(value) { "reached" } else { "MISSED" };
        let digits = if goal < 10.0 { 2 } else { 0 };
        self.row(what, measured.into(), format!("{value:.digits$}{unit}"), format!("{sign} {goal}{unit}: {verdict}"));
    }

    /// Prints the table.
    pub fn print(&self) {
        let width = |column: fn(&Row) -> &str, least: usize| {
            let indented = self.rows.iter().filter(|row| !row.measured.is_empty() || !row.ratio.is_empty());
            indented.map(|row| column(row).chars().count()).max().unwrap_or(0).max(least)
        };
        let (what, measured, ratio) =
            (width(|row| &row.what, 10), width(|row| &row.measured, 8), width(|row| &row.ratio, 5));
        println!("\n{:what$}  {:>measured$}  {:>ratio$}  to reach", "", "measured", "ratio");
        for row in &self.rows {
            let line =
                format!("{:what$}  {:>measured$}  {:>ratio$}  {}", row.what, row.measured, row.ratio, row.target);
            println!("{}", line.trim_end());
        }
    }

    fn row(&mut self, what: &str, measured: String, ratio: String, target: String) {
        println!("  {what}: {measured} {ratio}");
        self.rows.push(Row { what: format!("  {what}"), measured, ratio, target });
    }
}

/// The value in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
