// The common half of the TypeScript clients: steps come on stdin as lines of JSON and are carried out side by side;
// outcomes and everything heard in between go to stdout. The words are those of tests/matrix/clients/lines.py.
// Imports no SDK: ts1.mjs and ts2.mjs do.

import { createInterface } from 'node:readline';

const connections = new Map();
const steps = new Map(); // id → AbortController

const say = (told) => process.stdout.write(`${JSON.stringify(told)}\n`);

// What a user, a model or a file system says. It depends on the question, so that a mix-up shows.
export function answer(method, params) {
    if (method === 'roots/list') return { roots: [{ uri: 'file:///matrix', name: 'matrix' }] };
    if (method === 'sampling/createMessage') {
        const said = params.messages.at(-1).content;
        const text = (Array.isArray(said) ? said[0] : said).text;
        return { role: 'assistant', model: 'matrix-model', content: { type: 'text', text: `on ${text}` } };
    }
    if (params.mode === 'url') return { action: 'accept' };
    const topic = params.message.slice(params.message.lastIndexOf(', ') + 2);
    if (topic === 'decline' || topic === 'cancel') return { action: topic };
    return { action: 'accept', content: { name: `${topic}!` } };
}

// What both generations of the SDK's client do alike. `client` is connected.
export class Connection {
    constructor(client, hear) {
        this.client = client;
        this.hear = hear;
    }

    close() {
        return this.client.close();
    }

    page({ kind, cursor }, options) {
        const listing = { tools: 'listTools', prompts: 'listPrompts', resources: 'listResources', templates: 'listResourceTemplates' };
        return this.client[listing[kind]](cursor === null ? {} : { cursor }, { ...options, cacheMode: 'refresh' });
    }

    get({ name, arguments: given }, options) {
        return this.client.getPrompt({ name, arguments: given }, options);
    }

    read({ uri }, options) {
        return this.client.readResource({ uri }, { ...options, cacheMode: 'refresh' });
    }

    complete({ ref, argument, context }, options) {
        return this.client.complete({ ref, argument, context: { arguments: context } }, options);
    }

    ping(_, options) {
        return this.client.ping(options);
    }

    level({ level }, options) {
        return this.client.setLoggingLevel(level, options);
    }

    subscribe({ uri }, options) {
        return this.client.subscribeResource({ uri }, options);
    }

    unsubscribe({ uri }, options) {
        return this.client.unsubscribeResource({ uri }, options);
    }

    roots_changed() {
        return this.client.sendRootsListChanged();
    }
}

async function carryOut({ id, on, do: what, args }, opening) {
    if (what === 'open') {
        const [connection, about] = await opening(args, (method, params, by = 0) => say({ on, heard: method, params, by }));
        connections.set(on, connection);
        return about;
    }
    if (what === 'close') {
        const connection = connections.get(on);
        connections.delete(on);
        return connection.close();
    }
    if (what === 'cancel') return steps.get(args.step).abort('the user changed their mind');
    const abort = new AbortController();
    steps.set(id, abort);
    const hear = (progress) => say({ on, heard: 'progress', params: progress, by: id });
    try {
        return await connections.get(on)[what](args, { signal: abort.signal, timeout: 30_000 }, hear);
    } catch (error) {
        throw abort.signal.aborted ? 'cancelled' : error;
    } finally {
        steps.delete(id);
    }
}

// A JSON-RPC error has a number for its code. 1.x writes the code before the message that was sent.
function told(error) {
    if (error === 'cancelled') return { failed: 'cancelled' };
    if (typeof error?.code === 'number' && error.name !== 'StreamableHTTPError') {
        const message = error.message.replace(/^MCP error -?\d+: /, '');
        return { error: { code: error.code, message, data: error.data ?? null } };
    }
    return { failed: `${error?.name}: ${error?.message}` };
}

export async function serve(opening) {
    for await (const line of createInterface({ input: process.stdin })) {
        const step = JSON.parse(line);
        carryOut(step, opening).then(
            (ok) => say({ id: step.id, ok: ok ?? null }),
            (error) => say({ id: step.id, ...told(error) }),
        );
    }
    await Promise.allSettled([...connections.values()].map((connection) => connection.close()));
    process.exit(0);
}
