//! [`RunLog`]: a run's record, `log.jsonl`, one JSON object per line.
//!
//! Iterations are counted when they are complete: the first step is iteration 1, and a checkpoint of
//! iteration `n` continues with step `n + 1`. In iteration `n` the order is step, evaluation,
//! checkpoint; the line about a checkpoint comes *before* the file is written. Then a run that was
//! interrupted and resumed has, but for [`Event::Resume`] and [`TIMES`], the log of one that was not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::metrics::Scores;
use crate::checkpoint::{RealDisk, replace_file};
use crate::{Error, Result};

/// The log's name in a run's folder.
pub const FILE_NAME: &str = "log.jsonl";

/// The keys whose values depend on the clock: they differ between runs that are otherwise equal.
pub const TIMES: &[&str] = &["images_per_s", "seconds_left", "seconds"];

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins.
    Start(Start<'a>),
    /// An iteration is complete.
    Step(Step),
    /// The model was evaluated.
    Eval {
        /// After which iteration.
        iteration: usize,
        /// On which part of the data set.
        split: &'a str,
        /// How well it did.
        #[serde(flatten)]
        scores: &'a Scores,
        /// How long it took.
        seconds: f64,
    },
    /// A checkpoint is about to be written.
    Checkpoint {
        /// After which iteration.
        iteration: usize,
        /// Its name in the run's folder.
        file: &'a str,
    },
    /// The run continues from a checkpoint.
    Resume {
        /// The checkpoint's.
        iteration: usize,
    },
    /// The run is over.
    Stop {
        /// After which iteration.
        iteration: usize,
        /// Why, such as "finished" or "interrupted".
        reason: &'a str,
    },
}

/// What a run is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Start<'a> {
    /// The recipe's name.
    pub name: &'a str,
    /// Of this crate.
    pub version: &'a str,
    /// The GPU and its driver.
    pub device: &'a str,
    /// Numbers in the model.
    pub parameters: usize,
    /// Iterations that it will have.
    pub iterations: usize,
    /// Pictures per iteration.
    pub batch_size: usize,
    /// Pictures to train on.
    pub train_images: usize,
    /// Pictures to evaluate on.
    pub eval_images: usize,
}

/// An iteration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Its number, from 1.
    pub iteration: usize,
    /// The sum that was minimised.
    pub loss: f32,
    /// Cross entropy of the prediction.
    pub loss_ce: f32,
    /// Weighted cross entropy of the semantic maps; absent in a model without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_cate: Option<f32>,
    /// The other terms by name, each times its weight: `loss_mask` and `loss_dice` of the last layer of a head that
    /// finds masks, `loss_ce_0`, `loss_mask_0`, … of the layers before it.
    #[serde(flatten)]
    pub loss_terms: BTreeMap<String, f32>,
    /// The learning rate that it used.
    pub lr: f64,
    /// Speed of late.
    pub images_per_s: f64,
    /// Until the run is over, at this speed.
    pub seconds_left: f64,
}

/// The log of a run that is going on.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    len: u64,
}

impl RunLog {
    /// The log of a new run.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when it cannot be created, [`Error::Invalid`] when there is one already.
    pub fn create(path: &Path) -> Result<Self> {
        match File::options().append(true).create_new(true).open(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file, len: 0 }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Error::invalid_file(
                path,
                "a run has been here; resume it or choose another folder",
            )),
            Err(error) => Err(Error::file("create", path)(error)),
        }
    }

    /// The log of a run that continues from its checkpoint of `iteration`. What it says about later
    /// iterations, and that the run stopped, is dropped: it is about to happen again, or differently.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when it cannot be rewritten, [`Error::Invalid`] when it is damaged.
    pub fn resume(path: &Path, iteration: usize) -> Result<Self> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            // A checkpoint that was moved here without its log.
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::file("read", path)(error)),
        };
        let mut kept = Vec::with_capacity(bytes.len());
        for (line, value) in parse(&bytes, path)? {
            let at = value["iteration"].as_u64().unwrap_or(0);
            if at <= iteration as u64 && value["event"] != "stop" {
                // As it was written: equal logs are equal bytes.
                kept.extend_from_slice(line);
                kept.push(b'\n');
            }
        }
        let len = kept.len() as u64;
        replace_file(&RealDisk, path, len, |out| out.write_all(&kept))?;
        let file = File::options().append(true).open(path).map_err(Error::file("write", path))?;
        Ok(Self { path: path.to_owned(), file, len })
    }

    /// Adds a line. After [`Event::Checkpoint`] and [`Event::Stop`] the log is on the disk: a
    /// checkpoint must not outlive the lines before it.
    ///
    /// # Errors
    ///
    /// [`Error::File`]; the log is then as before.
    pub fn write(&mut self, event: &Event<'_>) -> Result<()> {
        let mut line = serde_json::to_string(event).expect("an event is plain data");
        line.push('\n');
        let sync = matches!(event, Event::Checkpoint { .. } | Event::Stop { .. });
        let written = self.file.write_all(line.as_bytes());
        if let Err(error) = written {
            // The next line must not continue half a line. Should this fail too, the first error
            // is the one that matters.
            let _ = self.file.set_len(self.len);
            return Err(Error::file("write", &self.path)(error));
        }
        self.len += line.len() as u64;
        if sync {
            self.file.sync_data().map_err(Error::file("write", &self.path))?;
        }
        Ok(())
    }
}

/// All lines of the log `path`, except a last one that was cut short.
///
/// # Errors
///
/// [`Error::File`] when it cannot be read, [`Error::Invalid`] with the line that is no JSON object.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let bytes = fs::read(path).map_err(Error::file("read", path))?;
    Ok(parse(&bytes, path)?.into_iter().map(|(_, value)| value).collect())
}

fn parse<'a>(bytes: &'a [u8], path: &Path) -> Result<Vec<(&'a [u8], Value)>> {
    let lines = bytes.split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    let mut parsed = Vec::new();
    let mut torn = None;
    for (number, line) in lines {
        if let Some(error) = torn {
            return Err(error);
        }
        match serde_json::from_slice(line) {
            Ok(value @ Value::Object(_)) => parsed.push((line, value)),
            // A process that was killed leaves half a line, a power cut one of zeros: the last.
            _ => {
                let place = format!("{}:{}", path.display(), number + 1);
                torn = Some(Error::invalid(place, "is no line of a log"));
            }
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metrics::Confusion;

    fn step(iteration: usize) -> Step {
        Step {
            iteration,
            loss: 1.0 / iteration as f32,
            loss_ce: 0.1,
            loss_cate: (iteration > 2).then_some(0.25),
            loss_terms: BTreeMap::new(),
            lr: 1e-4,
            images_per_s: 3.5,
            seconds_left: 10.0,
        }
    }

    /// Iterations `from..=to`, an evaluation and a checkpoint after each even one.
    fn train(log: &mut RunLog, from: usize, to: usize) {
        let mut confusion = Confusion::new(2);
        confusion.add(&[0, 1, 1], &[0, 0, 1]).unwrap();
        let scores = confusion.scores();
        for iteration in from..=to {
            log.write(&Event::Step(step(iteration))).unwrap();
            if iteration % 2 == 0 {
                let eval = Event::Eval { iteration, split: "val", scores: &scores, seconds: 0.5 };
                log.write(&eval).unwrap();
                let file = "last.safetensors";
                log.write(&Event::Checkpoint { iteration, file }).unwrap();
            }
        }
    }

    fn start() -> Event<'static> {
        Event::Start(Start {
            name: "n",
            version: "0",
            device: "d",
            parameters: 1,
            iterations: 8,
            batch_size: 2,
            train_images: 3,
            eval_images: 4,
        })
    }

    #[test]
    fn events_read_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut log = RunLog::create(&path).unwrap();
        log.write(&start()).unwrap();
        train(&mut log, 1, 3);
        log.write(&Event::Stop { iteration: 3, reason: "interrupted" }).unwrap();
        let lines = read(&path).unwrap();
        let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["start", "step", "step", "eval", "checkpoint", "step", "stop"]);
        assert_eq!(lines[3]["miou"], 0.5);
        assert_eq!(lines[3]["per_class"][1]["acc"], 1.0);
        assert_eq!((&lines[1]["loss_cate"], &lines[5]["loss_cate"]), (&Value::Null, &0.25.into()));
        assert_eq!(lines[0]["device"], "d");
    }

    #[test]
    fn a_resumed_log_equals_an_uninterrupted_one() {
        let folder = tempfile::tempdir().unwrap();
        let [whole, path] = ["whole.jsonl", FILE_NAME].map(|name| folder.path().join(name));
        let mut log = RunLog::create(&whole).unwrap();
        log.write(&start()).unwrap();
        train(&mut log, 1, 8);

        let mut log = RunLog::create(&path).unwrap();
        log.write(&start()).unwrap();
        train(&mut log, 1, 5);
        log.write(&Event::Stop { iteration: 5, reason: "interrupted" }).unwrap();
        // Killed while writing.
        log.file.write_all(b"{\"event\":\"st").unwrap();
        drop(log);
        let mut log = RunLog::resume(&path, 4).unwrap();
        train(&mut log, 5, 7);
        log.write(&Event::Stop { iteration: 6, reason: "interrupted" }).unwrap();
        // Once more, and where a stop is the last thing that is said about the checkpoint's iteration.
        let mut log = RunLog::resume(&path, 6).unwrap();
        train(&mut log, 7, 8);
        assert_eq!(fs::read(&path).unwrap(), fs::read(&whole).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_torn_last_line_is_tolerated_and_a_torn_middle_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut log = RunLog::create(&path).unwrap();
        train(&mut log, 1, 3);
        let bytes = fs::read(&path).unwrap();
        for len in 0..bytes.len() {
            fs::write(&path, &bytes[..len]).unwrap();
            // A line that lacks nothing but its end is whole.
            let ends = bytes[..=len].iter().filter(|&&b| b == b'\n').count();
            assert_eq!(read(&path).unwrap().len(), ends, "{len} bytes");
            RunLog::resume(&path, 99).unwrap().write(&Event::Step(step(9))).unwrap();
            assert_eq!(read(&path).unwrap().last().unwrap()["iteration"], 9, "{len}");
        }
        fs::write(&path, [bytes.as_slice(), &[0; 40]].concat()).unwrap();
        assert_eq!(read(&path).unwrap().len(), 5);
        fs::write(&path, [b"{\"event\":\"st\n", bytes.as_slice()].concat()).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.ends_with("log.jsonl:1: is no line of a log"), "{error}");
    }

    #[test]
    fn a_second_run_does_not_write_into_the_log_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        RunLog::create(&path).unwrap();
        let error = RunLog::create(&path).unwrap_err().to_string();
        assert!(error.contains("resume it"), "{error}");
    }

    #[test]
    fn a_checkpoint_without_its_log_can_be_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut log = RunLog::resume(&path, 4).unwrap();
        log.write(&Event::Resume { iteration: 4 }).unwrap();
        assert_eq!(read(&path).unwrap().len(), 1);
    }

    #[test]
    fn the_clock_is_in_the_named_keys_only() {
        let mut line = serde_json::to_value(Event::Step(step(3))).unwrap();
        let line = line.as_object_mut().unwrap();
        line.retain(|key, _| !TIMES.contains(&key.as_str()));
        let keys: Vec<_> = line.keys().map(String::as_str).collect();
        assert_eq!(keys, ["event", "iteration", "loss", "loss_cate", "loss_ce", "lr"]);
    }
}
