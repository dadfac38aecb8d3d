// The device's own page. Texts from outside (names, events, messages) only ever become text
// nodes: nothing here writes HTML. All addresses are relative, so the page works below any host.

const $ = (selector, root = document) => root.querySelector(selector)
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)]

// el makes an element: el('p.soft', {id: 'x'}, 'text', otherElement).
function el(tag, attrs, ...children) {
	const [name, ...classes] = tag.split('.')
	const e = document.createElement(name)
	if (classes.length) e.className = classes.join(' ')
	for (const k in attrs) {
		if (k.startsWith('on')) e.addEventListener(k.slice(2), attrs[k])
		else if (attrs[k] !== undefined && attrs[k] !== false) e.setAttribute(k, attrs[k])
	}
	e.append(...children.filter(c => c !== undefined && c !== null))
	return e
}

function icon(name) {
	const ns = 'http://www.w3.org/2000/svg'
	const svg = document.createElementNS(ns, 'svg'), use = document.createElementNS(ns, 'use')
	svg.setAttribute('aria-hidden', 'true')
	use.setAttribute('href', '#i-' + name)
	svg.append(use)
	return svg
}

// text writes only when something changes, so that screen readers are not told twice.
function text(e, s) {
	if (e.textContent !== s) e.textContent = s
}

const sleep = ms => new Promise(done => setTimeout(done, ms))

// --- The device's API

const away = 'The device does not answer. Is it switched on, and is this in the same network? Trying again…'
let ahead = 0 // how far the device's clock is ahead of this one, ms

class APIError extends Error {
	constructor(status, message) {
		super(message)
		this.status = status
	}
}

// api asks the device and returns {status, data}. When it throws an APIError, its message says what to do.
async function api(method, path, body, {wait = 10000, stop} = {}) {
	const abort = new AbortController()
	const timer = setTimeout(() => abort.abort(), wait)
	stop?.addEventListener('abort', () => abort.abort())
	let r, data
	try {
		r = await fetch('v1/' + path, {
			method, cache: 'no-store', signal: abort.signal,
			headers: body ? {'Content-Type': 'application/json'} : {}, body: body && JSON.stringify(body),
		})
		data = await r.json().catch(e => {
			if (e.name === 'SyntaxError') return null // no content
			throw e
		})
	} catch {
		if (stop?.aborted) throw new APIError(-1, '')
		online(false)
		throw new APIError(0, away)
	} finally {
		clearTimeout(timer)
	}
	online(true)
	const now = Date.parse(r.headers.get('Date'))
	if (now) ahead = now - Date.now()
	if (r.ok) return {status: r.status, data}
	throw new APIError(r.status, advice(r.status, data?.message))
}

function advice(status, message) {
	let s = message ? message.charAt(0).toUpperCase() + message.slice(1) : 'The device answered ' + status
	if (!/[.!?]$/.test(s)) s += '.'
	if (status === 401) return 'This browser is not paired any more. Pair it again.'
	if (status === 429) s += ' Wait a minute, then try again.'
	if (status >= 500) s += ' Try again in a moment.'
	return s
}

function online(yes) {
	const banner = $('#offline')
	if (!yes) text($('span', banner), away)
	if (banner.hidden === yes) return
	banner.hidden = yes
	if (!yes) headline('Not reachable', 'bad')
	else if (state.status) showStatus()
}

let noticeTimer
function notice(message, bad) {
	const e = $('#notice')
	clearTimeout(noticeTimer)
	e.classList.toggle('bad', Boolean(bad))
	text(e, message)
	noticeTimer = setTimeout(() => text(e, ''), bad ? 12000 : 6000)
}

// act runs what a button stands for, once at a time, and says what went wrong.
async function act(button, f) {
	if (button.disabled) return
	button.disabled = true
	try {
		await f()
	} catch (e) {
		if (e.status !== -1) notice(e.message, true)
		if (e.status === 401) await enter()
	} finally {
		button.disabled = false
	}
}

const on = (selector, f) => $(selector).addEventListener('click', e => act(e.currentTarget, f))

// confirmed puts a question in the place of a button, and acts when it is answered with yes.
function confirmed(button, question, yes, f) {
	const back = () => {
		box.replaceWith(button)
		button.focus()
	}
	const keep = el('button', {type: 'button', onclick: back}, 'Cancel')
	const go = el('button.danger', {type: 'button', onclick: () => act(go, async () => {
		await f()
		if (box.isConnected) box.replaceWith(button)
	})}, yes)
	const box = el('div.confirm', {role: 'group', 'aria-label': question}, el('p', {}, question), el('div.row', {}, keep, go))
	button.replaceWith(box)
	keep.focus()
}

// --- Words

const spaced = code => code ? code.replace(/^(\d{3})(\d{3})$/, '$1\u2009$2') : ''
const roles = ['owner', 'member', 'guest']
const ways = {button: 'paired with the button', 'first-start': 'paired at the first start', cli: 'paired on the device', client: 'let in by another phone', invitation: 'paired by invitation', label: 'paired with the label'}
const facts = {
	client_paired: 'Paired', pair_refused: 'Pairing refused', bad_token: 'Wrong token', client_revoked: 'Revoked',
	client_changed: 'Changed', window_opened: 'Pairing opened', window_closed: 'Pairing closed', invitation_made: 'Invited',
}

function count(n, one, many = one + 's') {
	return n + ' ' + (n === 1 ? one : many)
}

function span(seconds) {
	const d = Math.floor(seconds / 86400), h = Math.floor(seconds / 3600) % 24, m = Math.floor(seconds / 60) % 60
	if (d) return count(d, 'day') + (h ? ' ' + h + ' h' : '')
	if (h) return h + ' h ' + m + ' min'
	return m ? m + ' min' : 'less than a minute'
}

function ago(when) {
	const s = (Date.now() + ahead - Date.parse(when)) / 1000
	if (!(s >= 60)) return 'just now'
	if (s < 3600) return Math.floor(s / 60) + ' min ago'
	if (s < 86400) return Math.floor(s / 3600) + ' h ago'
	if (s < 30 * 86400) return count(Math.floor(s / 86400), 'day') + ' ago'
	return day(when)
}

const day = when => new Date(when).toLocaleDateString('en', {day: 'numeric', month: 'short', year: 'numeric'})
const since = when => el('time', {datetime: when, title: new Date(when).toLocaleString('en'), 'data-ago': ''}, ago(when))
const left = until => Math.max(0, Math.ceil((Date.parse(until) - Date.now() - ahead) / 1000))
const clock = s => s >= 60 ? Math.floor(s / 60) + ':' + String(s % 60).padStart(2, '0') + ' min' : s + ' s'

// thing is what the page runs on.
const agent = navigator.userAgent
const thing = /iPad|Tablet|Android(?!.*Mobile)/.test(agent) ? 'tablet' : /iPhone|Mobile/.test(agent) ? 'phone' : 'browser'

async function ownName() {
	if (/iPhone|iPad/.test(agent)) return agent.match(/iPhone|iPad/)[0]
	const model = (await navigator.userAgentData?.getHighEntropyValues(['model']).catch(() => null))?.model
		|| agent.match(/Android[^;)]*; ([^;)]+?)(?: Build|[;)])/)?.[1]
	if (model && model !== 'K') return model
	if (/Android/.test(agent)) return 'Android ' + thing
	const program = /Edg\//.test(agent) ? 'Edge' : /Firefox/.test(agent) ? 'Firefox' : /Chrom/.test(agent) ? 'Chrome' : /Safari/.test(agent) ? 'Safari' : 'Browser'
	const system = agent.match(/Windows|Mac OS X|CrOS|Linux/)?.[0].replace('Mac OS X', 'Mac').replace('CrOS', 'Chromebook')
	return program + (system ? ' on ' + system : '')
}

// --- State and what shows it

const state = {
	me: null, // the client that this browser is, null while it is not paired
	status: null, // last answer of /status
	pair: null, // last answer of /pair; false when the device has no pairing
	invitation: null, // {url, svg, expires} while it is shown
	mine: false, // whether this browser opened the pairing window
}
const owner = () => state.me?.role === 'owner'

function headline(words, kind) {
	const e = $('#state')
	if (e.dataset.words === words) return
	e.dataset.words = words
	e.replaceChildren(el('span.dot.' + kind), words)
}

function showStatus() {
	const s = state.status, t = s.tether, n = s.notifications
	const name = s.name || s.device.name || 'Device'
	text($('#name'), name)
	if (document.title !== name) document.title = name

	const service = {up: 'Running', down: 'Not answering' + (s.device.error ? ': ' + s.device.error : ''), unknown: 'Not asked yet'}[s.origin.state] ?? s.origin.state
	const retry = t.retry_at ? left(t.retry_at) : 0
	const reach = {
		off: 'In this network only',
		up: 'From everywhere' + (t.relay ? ', through ' + t.relay.replace(/^\w+:\/\/|\/$/g, '') : ''),
		down: 'In this network only: the relay is not reachable' + (retry ? '. Next try in ' + clock(retry) : '') + (t.error ? ' (' + t.error + ')' : ''),
	}[t.state] ?? t.state
	if (s.origin.state === 'down') headline('Its service does not answer', 'warn')
	else if (t.state === 'down') headline('Online, only in this network', 'warn')
	else headline(t.state === 'up' ? 'Online, from everywhere' : 'Online, in this network', 'good')

	text($('#s-service'), service)
	text($('#s-reach'), reach)
	const address = $('#s-address')
	if (!s.url) text(address, 'Not known yet')
	else if (address.textContent !== s.url) {
		// Only a web address becomes a link.
		address.replaceChildren(/^https:\/\//.test(s.url) ? el('a', {href: s.url}, s.url) : s.url)
	}
	text($('#s-version'), [s.device.name, s.device.version].filter(Boolean).join(' ') + (s.device.version ? ', ' : '') + 'gateway ' + s.version)
	text($('#s-uptime'), span(s.uptime))
	const lost = n.dropped_unacknowledged ? ', ' + n.dropped_unacknowledged + ' lost' : ''
	text($('#s-notes'), n.kept + ' kept' + (t.state === 'off' ? '' : n.unacknowledged ? ', ' + n.unacknowledged + ' not delivered yet' : ', all delivered') + lost)
	const c = s.cache
	$('#s-cache-row').hidden = c?.state !== 'on'
	if (c) text($('#s-cache'), c.entries + ' answers kept (' + Math.ceil(c.bytes / 1024) + ' KB), ' + c.hits + ' of ' + (c.hits + c.misses + c.validations) + ' requests answered from it')
	text($('#s-id'), s.id)
	text($('#s-pin'), s.certificate_sha256 || '')

	const warnings = [...s.device.warnings ?? [], n.fifo_error, n.socket_error, n.journal_error].filter(Boolean)
	if (s.access === 'open') warnings.unshift('Everybody in this network can use this device, paired or not. Start it with --access paired to change that.')
	if (s.access === 'origin') warnings.unshift('Who may use this device is decided by its service, not by pairing.')
	sync($('#warnings'), warnings, w => w, w => el('li', {}, w))
	$('#warnings').hidden = !warnings.length
}

// sync makes the children of a list those of items, and keeps elements whose item is as it was
// or in which somebody is just doing something.
function sync(list, items, key, make) {
	const old = new Map([...list.children].map(e => [e.key, e]))
	const next = items.map(item => {
		const k = key(item), json = JSON.stringify(item)
		const was = old.get(k)
		old.delete(k) // so that what is there twice gets two elements
		if (was && (was.json === json || was.contains(document.activeElement) || $('.confirm', was))) return was
		return Object.assign(make(item, was), {key: k, json})
	})
	if (next.length !== list.children.length || next.some((e, i) => e !== list.children[i])) list.replaceChildren(...next)
}

// enter asks who this browser is, and shows what is there for it.
async function enter() {
	try {
		state.me = (await api('GET', 'session')).data.client
	} catch (e) {
		if (e.status === 0) throw e
		state.me = null
	}
	const me = state.me
	if (me) $('#join').hidden = true
	const may = Boolean(me) || state.status?.access === 'open'
	$('#people').hidden = $('#me').hidden = !me
	$('#add').hidden = !me || me.role === 'guest'
	for (const e of $$('.owner-only')) e.hidden = !owner()
	$('#add-window').classList.toggle('primary', !owner())
	$('#security').hidden = !owner()
	if (!owner()) $('#requests').hidden = true
	$('#aside').hidden = !may
	document.body.toggleAttribute('data-wide', may)
	if (me) {
		text($('#me-name'), me.name)
		text($('#me-role'), me.role)
	} else {
		state.invitation = null
		showInvitation()
	}
	may ? events.start() : events.stop()
	const first = document.body.dataset.view === 'loading'
	if (first) await refresh() // shown when all is there, so that nothing moves
	document.body.dataset.view = me ? 'in' : 'out'
	if (!first) await refresh()
}

// refresh asks for everything that changes slowly.
async function refresh() {
	const jobs = [status(), windowState()]
	if (state.me) jobs.push(people().then(security))
	if (owner()) jobs.push(requests())
	await Promise.all(jobs)
}

async function status() {
	state.status = (await api('GET', 'status')).data
	$('#status').hidden = false
	showStatus()
}

// --- Pairing this browser

const join = $('#join')
let waiting = null // aborts the wait for an approval

function step(name) {
	join.dataset.step = name
	join.hidden = false
}

const joinError = message => text($('#join-error'), message)

async function windowState() {
	try {
		state.pair = (await api('GET', 'pair')).data
	} catch (e) {
		if (e.status !== 404) throw e
		state.pair = false // who may use the device is not decided by pairing
	}
	showWindow()
}

function showWindow() {
	const p = state.pair
	const open = Boolean(p && p.open && (!p.until || left(p.until) > 0))
	if (!state.me) {
		if (!p) join.hidden = true
		else if (join.hidden) step('ask')
		text($('#join-lead'), !p ? '' : open
			? p.fresh ? 'This device is new. Whoever pairs first becomes its owner.'
				: p.confirm ? 'Pairing is open. Somebody at the device, or with a paired phone, is asked to approve.'
					: 'Pairing is open. The first to ask is let in.'
			: 'Only somebody who can get at the device can let you in. Open pairing first:')
		$('#join-how').hidden = open
		countdown($('#join-window'), open, p?.until, 'Pairing is open', 'Pairing is closed')
		$('#join-go').disabled = !open || Boolean(waiting)
	}
	const mine = open && Boolean(state.me) && !$('#add').hidden
	if (mine) countdown($('#add-open .window'), true, p.until, 'Pairing is open')
	$('#add-open').hidden = !mine || Boolean(state.invitation)
	$('#add-ask').hidden = mine || Boolean(state.invitation)
	text($('#add-url'), location.host + location.pathname)
}

function countdown(box, open, until, yes, no) {
	const s = open && until ? left(until) : 0
	box.classList.toggle('open', open)
	// Only the change is announced, not every second.
	$('p', box).setAttribute('aria-live', s && s % 15 ? 'off' : 'polite')
	text($('.text', box), open ? yes + (s ? ' for ' + clock(s) : '') : no)
	const bar = $('progress', box)
	if (s > bar.max || !open) bar.max = Math.max(60, s)
	bar.value = s
}

async function ask(secret) {
	joinError('')
	const name = $('#join-name').value.trim() || await ownName()
	let answer = await api('POST', 'pair', {name, cookie: true, ...(secret ? {secret} : {})})
	if (answer.status !== 202) return paired(answer.data, secret)

	const {request, code} = answer.data
	text($('.step[data-step=wait] .code', join), spaced(code))
	step('wait')
	waiting = new AbortController()
	const {signal} = waiting
	try {
		for (;;) {
			try {
				answer = await api('GET', 'pair/' + encodeURIComponent(request), null, {wait: 35000, stop: signal})
				if (answer.status !== 202) return await paired({code, ...answer.data}, secret)
			} catch (e) {
				if (e.status !== 0) throw e
			}
			await sleep(500) // also when the device does not hold the answer back
			if (signal.aborted) throw new APIError(-1, '')
		}
	} finally {
		waiting = null
	}
}

// paired takes over the answer that says so.
async function paired(answer, quiet) {
	let signedIn = await api('GET', 'session').catch(() => null)
	if (!signedIn && answer.token) {
		await api('POST', 'session', {token: answer.token})
		signedIn = await api('GET', 'session')
	}
	state.me = signedIn?.data.client ?? answer.client
	if (quiet || !answer.code) {
		await enter()
		notice('Paired. Welcome.')
		return
	}
	text($('.step[data-step=done] .code', join), spaced(answer.code))
	step('done')
	$('.step[data-step=done] h2', join).focus()
}

async function tryAsk(secret) {
	try {
		await ask(secret)
	} catch (e) {
		step('ask')
		if (e.status === 410) joinError('Nobody approved in time. Open pairing again and ask once more.')
		else if (e.status !== -1) joinError(e.message)
		await windowState().catch(() => {})
	}
}

$('#join-form').addEventListener('submit', e => {
	e.preventDefault()
	act($('#join-go'), () => tryAsk())
})
$('#join-stop').addEventListener('click', () => waiting?.abort())
on('#join-same', enter)
on('#join-other', async () => {
	await api('DELETE', 'clients/' + encodeURIComponent(state.me.id))
	state.me = null
	step('ask')
	await enter()
	joinError('Removed again. Find out who else is in this network before you try again.')
})

// invited uses the secret of an invitation, which came in the fragment of the address: that part
// is never sent to a server. It is taken out of the address at once.
async function invited() {
	const c = new URLSearchParams(location.hash.slice(1)).get('c')
	if (!c) return
	history.replaceState(null, '', location.pathname + location.search)
	if (state.me) return notice('This ' + thing + ' is paired already.')
	const [label, , secret] = c.split('.')
	if (!secret) return joinError('This invitation is not complete. Scan it again, or ask for a new one.')
	step('invited')
	// The secret is for one device only; names can lead to the wrong one.
	if (state.status && hexOf(label) !== state.status.id) {
		step('ask')
		return joinError('This invitation is for another device. Open it in the network of that device.')
	}
	await tryAsk(secret)
}

// hexOf turns the 52 base32 digits of a device ID into its 64 hex digits.
function hexOf(label) {
	let bits = ''
	for (const c of label.toLowerCase()) bits += 'abcdefghijklmnopqrstuvwxyz234567'.indexOf(c).toString(2).padStart(5, '0')
	return (bits.slice(0, 256).match(/.{4}/g) ?? []).map(b => parseInt(b, 2).toString(16)).join('')
}

// --- Phones and apps

async function people() {
	const {clients} = (await api('GET', 'clients')).data
	for (const c of clients) names.set(c.id, c.name)
	clients.sort((a, b) => b.you - a.you || (a.name < b.name ? -1 : 1))
	sync($('#client-list'), clients, c => c.id, person)
}

const names = new Map() // of clients by ID, also of those that are gone

function roleChoice(id, chosen) {
	const choice = el('select', {id})
	for (const r of roles) choice.append(el('option', {}, r))
	choice.value = chosen
	return choice
}

function person(c, was) {
	const used = c.last_used ? ['used ', since(c.last_used)] : ['not used yet']
	const inner = el('div.inner')
	const details = el('details', {}, el('summary', {},
		el('span.badge', {}, icon('phone')),
		el('span.who', {}, el('span', {}, el('b', {}, c.name), c.you ? el('span.chip', {}, 'you') : null), el('small', {}, c.role, ', ', ...used)),
		icon('down')), inner)
	details.open = Boolean(was && $('details', was).open)

	const fact = (name, ...value) => el('div', {}, el('dt', {}, name), el('dd', {}, ...value))
	inner.append(el('dl', {}, fact('Paired', day(c.created) + ', ' + (ways[c.way] ?? c.way)),
		...(c.expires ? [fact('Ends', new Date(c.expires).toLocaleString('en', {dateStyle: 'medium', timeStyle: 'short'}))] : []),
		...(c.code ? [fact('Code', el('span', {}, spaced(c.code)))] : [])))

	const path = 'clients/' + encodeURIComponent(c.id)
	if (owner()) {
		const name = el('input', {id: 'n-' + c.id, maxlength: 60, value: c.name, autocomplete: 'off', required: ''})
		const role = roleChoice('r-' + c.id, c.role)
		const save = el('button', {disabled: ''}, 'Save')
		const form = el('form', {oninput: () => {
			save.disabled = !name.value.trim() || name.value === c.name && role.value === c.role
		}, onsubmit: e => {
			e.preventDefault()
			act(save, async () => {
				await api('PATCH', path, {name: name.value.trim(), role: role.value})
				document.activeElement?.blur()
				await people()
				notice('Saved.')
				if (c.you) await enter()
			})
		}}, el('div.pair', {}, el('div', {}, el('label', {for: name.id}, 'Name'), name), el('div', {}, el('label', {for: role.id}, 'Role'), role)), save)
		inner.append(form)
	}
	const verb = c.you ? 'Remove this ' + thing : 'Revoke'
	const revoke = el('button.danger', {type: 'button', onclick: () => confirmed(revoke,
		c.you ? 'Remove this ' + thing + '? You lose access at once and must pair again.' : 'Revoke ' + c.name + '? It loses access at once.',
		c.you ? 'Remove' : 'Revoke', async () => {
			await api('DELETE', path)
			notice(c.you ? 'Removed. This ' + thing + ' is not paired any more.' : c.name + ' is revoked.')
			if (c.you) return enter()
			await people()
			await security()
		})}, verb)
	inner.append(revoke)
	return el('li', {}, details)
}

// --- Requests of others

async function requests() {
	const list = (await api('GET', 'pair/requests')).data ?? []
	sync($('#request-list'), list, r => r.request, request)
	$('#requests').hidden = !list.length
	if (!list.length && !state.pair?.open) state.mine = false
}

function request(r) {
	const role = roleChoice('q-' + r.request, r.role || 'member')
	const answer = (button, verb, body, words) => act(button, async () => {
		try {
			await api('POST', 'pair/' + encodeURIComponent(r.request) + '/' + verb, body)
			notice(words)
		} finally {
			document.activeElement?.blur()
			await Promise.all([requests(), people(), security(), windowState()])
		}
	})
	const yes = el('button.primary', {type: 'button', onclick: () => answer(yes, 'approve', {role: role.value}, r.name + ' is paired.')}, 'Approve')
	const no = el('button', {type: 'button', onclick: () => answer(no, 'refuse', null, r.name + ' was refused.')}, 'Refuse')
	return el('li', {}, el('p', {}, el('b', {}, r.name), ' wants to pair'), el('p.code', {}, spaced(r.code)),
		el('p.tiny', {}, r.from ? 'From ' + r.from + ', ' : '', since(r.asked)),
		el('div', {}, el('label', {for: role.id}, 'Let it in as')), role, el('div.row', {}, no, yes))
}

// --- Adding others

on('#add-qr', async () => {
	state.invitation = (await api('POST', 'invitations', {role: $('#add-role').value})).data
	showInvitation()
	await windowState()
})
on('#add-end', async () => {
	await api('DELETE', 'invitations')
	state.invitation = null
	showInvitation()
	notice('The invitation is void.')
	await windowState()
})
on('#add-copy', async () => {
	try {
		await navigator.clipboard.writeText(state.invitation.url)
		notice('Copied. Whoever has the link can pair once.')
	} catch {
		notice('This browser does not let pages copy. Use the QR code.', true)
	}
})
on('#add-window', async () => {
	await api('POST', 'pair/window', owner() ? {role: $('#add-role').value} : {})
	state.mine = true
	await windowState()
})
on('#add-close', async () => {
	await api('DELETE', 'pair/window')
	await windowState()
})

function showInvitation() {
	const i = state.invitation, image = $('#add-image')
	$('#add-invite').hidden = !i
	if (!i) return image.removeAttribute('src')
	image.src = 'data:image/svg+xml,' + encodeURIComponent(i.svg)
	text($('#add-as'), $('#add-role').value)
}

function invitationTime() {
	if (!state.invitation) return
	const s = left(state.invitation.expires)
	text($('#add-left'), 'It works once, for ' + clock(s) + '.')
	if (s) return
	state.invitation = null
	showInvitation()
	showWindow()
}

// --- Events

// The name of an event is its topic, which may be anything. EventSource hands out only names it
// was told before, so the stream is read here (WHATWG HTML §9.2.6).
const events = {
	stopper: null,
	last: '', // id of the last event
	seen: new Set(),

	start() {
		if (this.stopper) return
		this.stopper = new AbortController()
		this.run(this.stopper.signal)
	},

	stop() {
		this.stopper?.abort()
		this.stopper = null
		this.last = ''
		this.seen.clear()
		$('#event-list').replaceChildren()
	},

	say(words, kind) {
		$('#events-state').replaceChildren(el('span.dot.' + kind), words)
	},

	// first is the id to begin after, so that the last ones are shown: ids are "<epoch>-<number>".
	first() {
		const n = state.status?.notifications
		if (!n) return ''
		if (n.appended > maxEvents) return n.epoch + '-' + (n.appended - maxEvents)
		return n.kept && n.kept <= 4 * maxEvents ? 'all' : '' // an unknown id gives all that are kept
	},

	async run(signal) {
		let from = this.first()
		while (!signal.aborted) {
			let pause = 3000
			try {
				const id = this.last || from
				const r = await fetch('v1/events', {cache: 'no-store', signal, headers: {Accept: 'text/event-stream', ...(id && {'Last-Event-ID': id})}})
				if (!r.ok) throw new APIError(r.status, '')
				this.say('Live', 'good')
				from = 'all' // after a cut, when there is no last one: there was none at all
				await this.read(r.body.getReader(), signal)
				pause = 500 // the device ended it, as at a restart
			} catch (e) {
				if (e.status === 401 || e.status === 403) pause = 15000
			}
			if (signal.aborted) return
			this.say('Not connected. Trying again…', 'warn')
			await sleep(pause)
		}
	},

	async read(reader, signal) {
		const decoder = new TextDecoder()
		let rest = '', event = {name: '', data: []}
		for (;;) {
			// Three heartbeats of 15 s without a word: the connection is dead.
			let timer
			const dead = new Promise((_, no) => { timer = setTimeout(() => no(new Error('silent')), 45000) })
			const {done, value} = await Promise.race([reader.read(), dead]).finally(() => clearTimeout(timer)).catch(e => {
				reader.cancel().catch(() => {})
				throw e
			})
			if (done || signal.aborted) return
			const lines = (rest + decoder.decode(value, {stream: true})).split('\n') // the device ends lines with LF
			rest = lines.pop()
			if (rest.length > 256 << 10) throw new Error('line too long')
			for (const line of lines) {
				if (line === '') {
					if (event.data.length) this.add(event.name, event.data.join('\n'), this.last)
					event = {name: '', data: []}
					continue
				}
				const [, field, value] = line.match(/^([^:]*):? ?(.*)$/s)
				if (field === 'event') event.name = value
				else if (field === 'data') event.data.push(value)
				else if (field === 'id') this.last = value
			}
		}
	},

	add(name, data, id) {
		if (name === 'reset') return // some are repeated, or were dropped: ids tell
		if (id && this.seen.has(id)) return
		this.seen.add(id)
		const list = $('#event-list'), now = new Date()
		if (name === 'cloudrest/security') { // the device's own, in JSON
			try {
				const e = JSON.parse(data)
				name = facts[e.event] ?? name
				data = e.detail ?? data
			} catch {}
		}
		$('.empty', list)?.remove()
		list.prepend(el('li', {'data-id': id}, el('div.line', {}, el('b', {}, name || 'Notification'),
			el('time', {datetime: now.toISOString(), title: 'seen ' + now.toLocaleString('en')}, now.toLocaleTimeString('en', {hour12: false}))),
			el('p.data', {}, data), el('p.tiny.mono', {}, id)))
		while (list.children.length > maxEvents) {
			this.seen.delete(list.lastElementChild.dataset.id)
			list.lastElementChild.remove()
		}
	},
}
const maxEvents = 50

// --- Security log

let allSecurity = false

async function security() {
	if (!owner()) return
	const answer = (await api('GET', 'security')).data ?? []
	const log = (Array.isArray(answer) ? answer : answer.events ?? []).slice().sort((a, b) => Date.parse(b.time) - Date.parse(a.time))
	const few = (allSecurity ? log : log.slice(0, 6)).map(e => ({...e, client: names.get(e.client) ?? e.client}))
	sync($('#security-list'), few, e => JSON.stringify(e), e => {
		const name = facts[e.event] ?? (e.event.charAt(0).toUpperCase() + e.event.slice(1)).replaceAll('_', ' ')
		const bad = /refused|bad|reset|race|clone/.test(e.event)
		return el('li', {}, el('div.line', {}, el(bad ? 'b.warn' : 'b', {}, name + (e.client ? ': ' + e.client : '')), since(e.time)),
			e.detail ? el('p', {}, e.detail) : null, e.from ? el('p.tiny', {}, 'from ' + e.from) : null)
	})
	$('#security-more').hidden = few.length === log.length
}
on('#security-more', () => {
	allSecurity = true
	return security()
})

on('#cache-empty', async () => {
	await api('DELETE', 'cache')
	state.status = (await api('GET', 'status')).data
	showStatus()
})

$('#out').addEventListener('click', e => confirmed(e.currentTarget, 'Sign out? To come back, this ' + thing + ' must pair again. Its entry stays in the list until it is revoked.', 'Sign out', async () => {
	await api('DELETE', 'session')
	await enter()
	notice('Signed out.')
}))

// --- Keeping it true

// Everything is asked again while somebody looks: what waits for an answer every 2 s, the rest less often.
let busy = false
async function poll(round) {
	if (document.hidden || busy) return
	busy = true
	try {
		const jobs = []
		if (round % 3 === 0 || !state.status) jobs.push(status())
		if (!state.me || state.pair?.open || round % 3 === 0) jobs.push(windowState())
		if (owner() || state.mine) jobs.push(requests())
		if (state.me && round % 5 === 0) jobs.push(people(), security())
		await Promise.all(jobs)
		if (document.body.dataset.view === 'loading') await begin()
	} catch (e) {
		if (e.status === 401 && state.me) {
			state.me = null
			await enter().catch(() => {})
			notice('This ' + thing + ' is not paired any more.', true)
		}
	} finally {
		busy = false
	}
}

async function begin() {
	await status()
	await enter()
	await invited()
}

for (const e of $$('.thing')) text(e, thing)
text($('#add-title'), 'Add a phone')
ownName().then(name => { $('#join-name').value ||= name })
addEventListener('hashchange', () => invited().catch(e => notice(e.message, true)))
document.addEventListener('visibilitychange', () => poll(0))
let round = 0
setInterval(() => poll(++round), 2000)
setInterval(() => {
	if (state.pair) showWindow()
	invitationTime()
	for (const e of $$('[data-ago]')) text(e, ago(e.dateTime))
}, 1000)
begin().catch(() => {})
