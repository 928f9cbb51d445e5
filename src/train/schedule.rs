//! [`Schedule`]: the learning rate of each iteration.

use serde::{Deserialize, Serialize};

use super::recipe::ScheduleTable;

/// How the learning rate rises during the first `n` iterations; `t` counts from 0.
///
/// [`Linear`](Self::Linear) and [`Detectron2`](Self::Detectron2) are the same line, rounded
/// differently; both are there so that published runs can be followed to the last digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WarmupKind {
    /// mmcv's: times `1 − (1 − t/n)(1 − ratio)`.
    Linear,
    /// detectron2's: times `ratio · (1 − t/n) + t/n`.
    Detectron2,
    /// Equal steps: times `(t + 1)/n`; the ratio plays no part.
    Additive,
}

/// A polynomial that falls from the base rate to the least over a run, with a warm-up.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    base: f64,
    table: ScheduleTable,
}

impl Schedule {
    /// The schedule that a recipe's `optimizer.lr` and `[schedule]` describe.
    pub fn new(base: f64, table: &ScheduleTable) -> Self {
        Self { base, table: table.clone() }
    }

    /// The learning rate that iteration `t = 0, 1, …` uses:
    /// `((base − min_lr) · (1 − t/iterations)^power + min_lr) · warmup(t)`.
    ///
    /// After the last iteration it stays `min_lr`.
    pub fn lr(&self, t: usize) -> f64 {
        let ScheduleTable { iterations, warmup, power, min_lr, .. } = self.table;
        let left = 1.0 - (t as f64 / iterations as f64).min(1.0);
        ((self.base - min_lr) * left.powf(power) + min_lr) * self.warmup(t, warmup)
    }

    fn warmup(&self, t: usize, n: usize) -> f64 {
        if t >= n {
            return 1.0;
        }
        let (a, ratio) = (t as f64 / n as f64, self.table.warmup_ratio);
        match self.table.warmup_kind {
            WarmupKind::Linear => 1.0 - (1.0 - a) * (1.0 - ratio),
            WarmupKind::Detectron2 => ratio * (1.0 - a) + a,
            WarmupKind::Additive => (t + 1) as f64 / n as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::testing;
    use crate::train::recipe::Recipe;

    /// Schedules of mmcv and detectron2, computed by those.
    #[test]
    fn learning_rates_equal_the_original_frameworks() {
        let Some(path) = testing::fixture("train.lr_schedules.json") else { return };
        let text = std::fs::read_to_string(path).unwrap();
        let cases: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(cases.len(), 6);
        for (name, case) in &cases {
            let number = |key: &str| case.get(key).and_then(Value::as_f64);
            let detectron2 = name.starts_with("d2_");
            let table = ScheduleTable {
                iterations: number("max_iters").unwrap() as usize,
                warmup: number("warmup_iters").unwrap() as usize,
                warmup_ratio: number("warmup_ratio").or(number("warmup_factor")).unwrap_or(1.0),
                warmup_kind: match detectron2 {
                    true => WarmupKind::Detectron2,
                    false => WarmupKind::Linear,
                },
                power: number("power").unwrap(),
                min_lr: number("min_lr").unwrap_or(0.0),
            };
            let schedule = Schedule::new(number("base").unwrap(), &table);
            let list = |key: &str| case[key].as_array().unwrap().iter();
            for (t, lr) in list("iteration").zip(list("lr")) {
                let (t, lr) = (t.as_u64().unwrap() as usize, lr.as_f64().unwrap());
                let error = (schedule.lr(t) / lr - 1.0).abs();
                assert!(error <= 1e-12, "{name} at {t}: {} is not {lr}", schedule.lr(t));
            }
        }
    }

    /// As `lr · min(1, it/30) · (1 − (it − 1)/300)^0.9` in a plain loop, `it` from 1.
    #[test]
    fn the_quickstart_warms_up_and_decays() {
        let recipe = Recipe::preset("quickstart").unwrap();
        let schedule = recipe.schedule();
        for it in 1..=300_usize {
            let warm = (it as f64 / 30.0).min(1.0);
            let wanted = 3e-3 * warm * (1.0 - (it - 1) as f64 / 300.0).powf(0.9);
            assert!((schedule.lr(it - 1) / wanted - 1.0).abs() <= 1e-12, "{it}");
        }
    }

    #[test]
    fn the_end_is_min_lr_and_stays_so() {
        let table = ScheduleTable { iterations: 10, warmup: 0, min_lr: 0.25, ..Default::default() };
        let schedule = Schedule::new(1.0, &table);
        assert_eq!(schedule.lr(0), 1.0);
        assert_eq!([schedule.lr(10), schedule.lr(11), schedule.lr(usize::MAX)], [0.25; 3]);
    }
}
