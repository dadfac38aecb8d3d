// Runs in the suite's folder, by its own modules; prints one line of JSON at the end.
import dns from 'node:dns'
import { pathToFileURL } from 'node:url'
// Names below localhost are this machine (RFC 6761 §6.3); not every resolver knows.
const lookup = dns.lookup
dns.lookup = (name, ...rest) => lookup(name.endsWith('.localhost') ? '127.0.0.1' : name, ...rest)
const at = path => pathToFileURL(`${process.cwd()}/${path}`).href
const { runTests, getResults } = await import(at('test-engine/client/runner.mjs'))
const { determineTestResult, resultTypes } = await import(at('test-engine/lib/results.mjs'))
const suites = (await import(at('tests/index.mjs'))).default
const id = process.env.CACHETESTS_ID
let chosen = suites
if (id) {
  chosen = suites.map(s => ({ ...s, tests: s.tests.filter(t => t.id === id) })).filter(s => s.tests.length)
  chosen.forEach(s => s.tests.forEach(t => { t.dump = true }))
}
await runTests(chosen, false, process.env.CACHETESTS_BASE)
const results = getResults()
const list = []
for (const suite of suites) {
  for (const test of suite.tests) {
    if (test.browser_only || !(test.id in results)) continue
    const type = determineTestResult(suites, test.id, results)
    const outcome = Object.keys(resultTypes).find(name => resultTypes[name] === type)
    const r = results[test.id]
    list.push({ id: test.id, kind: test.kind || 'required', cdn: !!test.cdn_only, outcome, message: r === true ? '' : `${r[0]}: ${r[1]}` })
  }
}
console.log(JSON.stringify(list))
