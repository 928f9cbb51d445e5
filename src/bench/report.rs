//! Files of measurements, to compare others with, and a picture of shares.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Measurement, ROWS, Roof, Roofs};
use crate::picture::{Bar, Picture, bars};
use crate::{Error, Result};

/// What was measured on a device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The device's name.
    pub device: String,
    /// What the device can do.
    pub roofs: Roofs,
    /// In the order of [`ROWS`].
    pub rows: Vec<Measurement>,
}

impl Report {
    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::File`] and [`Error::InvalidFile`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        serde_json::from_str(&text).map_err(|e| Error::invalid_file(path, e.to_string()))
    }

    /// Writes a JSON file, a row to a line.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut json = json!(self);
        let rows = json["rows"].take();
        let rows = rows.as_array().into_iter().flatten().map(|row| format!("\n    {row}"));
        // A row to a line, so that changes are easy to see.
        let text = format!(
            "{{\n  \"device\": {},\n  \"roofs\": {},\n  \"rows\": [{}\n  ]\n}}\n",
            json["device"],
            json["roofs"],
            rows.collect::<Vec<_>>().join(",")
        );
        std::fs::write(path, text).map_err(Error::file("write", path))
    }

    /// How long `now` takes for each millisecond of the same row here.
    pub fn ratio(&self, now: &Measurement) -> Option<f64> {
        let then = self.rows.iter().find(|then| then.row == now.row && then.mode == now.mode)?;
        Some(now.busy_ms / then.busy_ms)
    }
}

/// A bar for each row and mode: the share that it reaches of what binds it.
pub fn picture(report: &Report) -> Picture {
    let bar = |m: &Measurement| {
        let (roof, share) = m.bound?;
        let what = ROWS.iter().find(|(name, _)| *name == m.row).map_or("", |(_, what)| what);
        let colour = match roof {
            Roof::Arithmetic => [52, 101, 164],
            Roof::Copy => [78, 154, 6],
            Roof::Gather => [206, 92, 0],
        };
        // Fonts have no arrow.
        let name = match m.mode.as_str() {
            "forward + backward" => "and backward".into(),
            _ => format!("{} {}", m.row, what.replace('→', "to")),
        };
        Some(Bar { name, note: format!("{:.0} % of {roof}", 100.0 * share), value: share, colour })
    };
    let bars_of: Vec<Bar> = report.rows.iter().filter_map(bar).collect();
    bars(&bars_of, &format!("Share of what binds each kernel: {}", report.device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(row: &str, busy_ms: f64) -> Measurement {
        Measurement {
            row: row.into(),
            mode: "forward".into(),
            ms: busy_ms,
            cpu_ms: None,
            first_ms: 1.0,
            runs: 3,
            busy_ms,
            gflop: 1.0,
            gflop_per_s: 1e3 / busy_ms,
            gbyte: 0.5,
            gbyte_per_s: 500.0 / busy_ms,
            bound: Some((Roof::Copy, 0.5)),
        }
    }

    #[test]
    fn what_was_written_is_read_and_compared() {
        let roofs = Roofs { arithmetic: 60.0, copy: 7.0, gather: 3.0 };
        let rows = vec![measured("a1", 4.0), measured("b1", 2.0)];
        let report = Report { device: "a \"device\"".into(), roofs, rows };
        let path = std::env::temp_dir().join(format!("semask-bench-{}.json", std::process::id()));
        report.write(&path).unwrap();
        let read = Report::read(&path);
        std::fs::remove_file(&path).unwrap();
        let read = read.unwrap();
        assert_eq!(read.device, report.device);
        assert_eq!(read.rows[1].bound, Some((Roof::Copy, 0.5)));
        assert_eq!(read.ratio(&measured("b1", 3.0)), Some(1.5));
        assert_eq!(read.ratio(&measured("c", 3.0)), None);
        // A bar per row, and words above them.
        assert!(picture(&read).height > picture(&Report { rows: Vec::new(), ..read }).height);
    }

    #[test]
    fn the_lowest_roof_binds() {
        let roofs = Roofs { arithmetic: 50.0, copy: 5.0, gather: 2.5 };
        assert_eq!(roofs.bound(100_000_000, 5_000_000, 0), (Roof::Arithmetic, 2.0));
        assert_eq!(roofs.bound(100_000_000, 15_000_000, 0), (Roof::Copy, 3.0));
        assert_eq!(roofs.bound(100_000_000, 15_000_000, 10_000_000), (Roof::Gather, 4.0));
    }
}
