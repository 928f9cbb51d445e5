//! Reading the compilers' assembly.

/// Instructions of the loop that has most multiply-adds and no loop within, and how many those are.
///
/// Read of AMD's (`BB7:`, `s_cbranch_scc1 BB7`) and Qualcomm's (`l260:`, `jump #l260`); Apple's driver
/// shows none.
pub(crate) fn inner_loop(text: &str) -> Option<[usize; 2]> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let loops: Vec<(usize, usize)> = (lines.iter().enumerate())
        .filter_map(|(end, line)| {
            let goal = goal(line)?;
            let start = lines[..end].iter().position(|line| label(line) == Some(goal))?;
            Some((start, end))
        })
        .collect();
    let innermost = |&&(start, end): &&(usize, usize)| {
        !loops.iter().any(|&(s, e)| (s, e) != (start, end) && start <= s && e <= end)
    };
    let count = |&(start, end): &(usize, usize)| {
        let body = lines[start..=end].iter().filter(|line| label(line).is_none());
        // A dual instruction of AMD's is two.
        let instructions = body.flat_map(|line| line.split("::"));
        instructions.fold([0, 0], |[all, fmas], instruction| {
            let times = repetitions(instruction);
            [all + times, fmas + if is_fma(instruction) { times } else { 0 }]
        })
    };
    let counts = loops.iter().filter(innermost).map(count);
    counts.max_by_key(|[_, fmas]| *fmas).filter(|[_, fmas]| *fmas > 0)
}

/// The place that a line names.
fn label(line: &str) -> Option<&str> {
    let name = line.strip_suffix(':')?;
    let number = name.strip_prefix("BB").or_else(|| name.strip_prefix('l'))?;
    number.bytes().all(|b| b.is_ascii_digit()).then_some(name)
}

/// Where a line jumps to.
fn goal(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    match line.contains("branch") {
        true => words.find(|word| word.starts_with("BB")),
        false => words.last()?.strip_prefix('#'),
    }
}

/// How often an instruction is done: Qualcomm's `(rpt1)` is twice.
fn repetitions(instruction: &str) -> usize {
    let digits = instruction.split_once("(rpt").and_then(|(_, rest)| rest.split_once(')'));
    digits.and_then(|(digits, _)| digits.parse::<usize>().ok()).map_or(1, |more| more + 1)
}

fn is_fma(instruction: &str) -> bool {
    ["fmac_", "fma_", "fmaak_", "fmamk_", "mad.f32"].iter().any(|name| instruction.contains(name))
}
