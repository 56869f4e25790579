import { ask } from './ask';

const parley = new URLSearchParams(location.search).get('parley') ?? 'http://localhost:8000';
const [form, button] = [document.querySelector('form')!, document.querySelector<HTMLButtonElement>('#stop')!];
const [answer, end] = [document.querySelector('#answer')!, document.querySelector('#end')!];

form.onsubmit = async (event) => {
  event.preventDefault();
  const stop = new AbortController();
  const abort = () => stop.abort();
  button.onclick = abort;
  addEventListener('pagehide', abort); // otherwise, the browser may keep the page, and the model runs on
  answer.textContent = end.textContent = '';
  try {
    await ask(parley, String(new FormData(form).get('message')), (text) => answer.append(text), stop.signal);
    end.textContent = stop.signal.aborted ? 'Stopped.' : 'Done.';
  } catch (error) {
    end.textContent = (error as Error).message;
  }
};
